"""A sweep's W&B workspace and report as code: saved once, and the same ones again afterwards.

Arms are what curves are grouped by, with a band over their seeds; a study's runs share a group.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from core.errors import UserError
from core.records import run_record
from core.records.designs import Design
from core.records.metrics import METRICS, metrics_in
from sweeps.studies.study import study_name
from sweeps.tracking.wandb_run import LONGEST_NAME

SAVED = "dashboard.json"  # beside a study's records: which workspace and report are its own
MEDIA = ["expert_load/heatmap", "routing/load_by_timestep"]
WIDE, HALF = 24, 12  # of W&B's grid


@dataclass(frozen=True)
class Content:
    """Content of a study's W&B report: a sentence, tables in Markdown, and a line for each failed run."""

    headline: str
    tables: Sequence[str]
    failures: Sequence[str]


def place_of(text: str) -> tuple[str, str]:
    """The entity and project that `ENTITY/PROJECT` names. Raises UserError."""
    entity, separator, project = text.partition("/")
    if not separator or not entity or not project or "/" in project:
        raise UserError(f"--wandb must be ENTITY/PROJECT, such as my-team/moe-diffusion-ablations, not '{text}'")
    return entity, project


def save(design: Design, content: Content, place: str, folder: Path) -> dict[str, str]:
    """Save the study's workspace and report, and return their addresses.

    place: ENTITY/PROJECT. folder: the study's, which remembers what was saved: saving again changes those. Whatever W&B
    answers with is raised as it is.
    """
    entity, project = place_of(place)
    kept = _former(folder / SAVED, place)
    view, report = workspace(design, content, entity, project), report_of(design, content, entity, project)
    view._internal_id, view._internal_name = kept.get("workspace_id", ""), kept.get("workspace_name", "")
    report.id = kept.get("report_id", report.id)
    view.save()
    kept |= {"workspace": view.url, "workspace_id": view._internal_id, "workspace_name": view._internal_name}
    _keep(folder / SAVED, kept)  # at once: a report that fails must not leave a workspace that nobody finds again
    report.save()
    kept |= {"report": report.url, "report_id": report.id}
    _keep(folder / SAVED, kept)
    return {"workspace": view.url, "report": report.url}


def _keep(path: Path, kept: Mapping[str, str]) -> None:
    run_record.write_atomically(path, json.dumps(kept, indent=2) + "\n")


def _former(path: Path, place: str) -> dict[str, str]:
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept if kept.get("place") == place else {"place": place}


def workspace(design: Design, content: Content, entity: str, project: str) -> ws.Workspace:
    """The workspace of a study: its runs alone, the curves of its metrics by arm, routing, factors and failures."""
    study = study_name(design.ablation, design.size)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=study,
        sections=[
            ws.Section(name="Loss", panels=_curves(_losses(design)), is_open=True),
            ws.Section(name="Routing", panels=[*_curves(metrics_in("panel")), _media()], is_open=True),
            ws.Section(name="Factors", panels=_factors(design), is_open=True),
            ws.Section(name="Failed runs", panels=[wr.MarkdownPanel(markdown=_failed(content))], is_open=True),
        ],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == study[:LONGEST_NAME]], groupby=[ws.Config("arm")]
        ),
    )


def report_of(design: Design, content: Content, entity: str, project: str) -> wr.Report:
    """The report of a study: the question, the verdict, the tables, and figures that follow its runs."""
    study = study_name(design.ablation, design.size)
    own = f"Metric('Group') == {study[:LONGEST_NAME]!r}"
    runs = wr.Runset(entity=entity, project=project, name=study, filters=own)
    failed = wr.Runset(
        entity=entity, project=project, name="failed", filters=f"{own} and Metric('State') in ['failed', 'crashed']"
    )
    figures = _laid_out([*_curves(_losses(design)), *_curves(metrics_in("panel")), _media(), *_factors(design)])
    return wr.Report(
        entity=entity,
        project=project,
        title=study,
        description=design.question,
        blocks=[
            wr.H1(text=design.question),
            wr.P(text=content.headline),
            *[wr.MarkdownBlock(text=table) for table in content.tables],
            wr.H2(text="Figures"),
            wr.PanelGrid(runsets=[runs], panels=figures),
            wr.H2(text="Failed runs"),
            wr.MarkdownBlock(text=_failed(content)),
            wr.PanelGrid(runsets=[failed], panels=[wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDE, h=8))]),
            wr.P(text=f"Made by {design.command}. The records beside it are what counts; this is their mirror."),
        ],
    )


def _losses(design: Design) -> list[str]:
    return list(dict.fromkeys((design.metric, "val/nelbo", "train/nelbo")))


def _curves(metrics: Sequence[str]) -> list[Any]:
    """A metric's mean over an arm's seeds against steps, with a band of a standard deviation."""
    return [
        wr.LinePlot(
            title=METRICS[name].label if name in METRICS else name,
            x="Step",
            y=[name],
            groupby=wr.Config("arm"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for name in metrics
    ]


def _media() -> Any:
    return wr.MediaBrowser(title="expert load", media_keys=MEDIA, num_columns=2)


def _factors(design: Design) -> list[Any]:
    metric = wr.SummaryMetric(design.metric)
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(factor.key), display_name=factor.label)
        for factor in design.factors
    ]
    return [
        wr.ParallelCoordinatesPlot(
            title="factors", columns=[*columns, wr.ParallelCoordinatesPlotColumn(metric=metric)]
        ),
        wr.ParameterImportancePlot(with_respect_to=design.metric),
    ]


def _laid_out(panels: Sequence[Any]) -> list[Any]:
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=HALF * (place % 2), y=8 * (place // 2), w=HALF, h=8)
    return list(panels)


def _failed(content: Content) -> str:
    return "\n".join(f"- {line}" for line in content.failures) or "None."
