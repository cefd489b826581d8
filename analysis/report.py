"""The report: one self-contained HTML file, from records alone."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from analysis import decoding, ladder_plots, ladder_words, plots
from analysis.frame import Study
from analysis.tables import Planned, Row
from analysis.verdicts import Judgement
from core.metrics import METRICS
from core.records import write_atomically

if TYPE_CHECKING:
    from analysis.factorial import Contrast


def write_report(study: Study, judgement: Judgement, path: Path) -> None:
    """Write the report; equal records give equal bytes."""
    write_atomically(path, render(study, judgement))


def render(study: Study, judgement: Judgement) -> str:
    """The report as HTML that asks for nothing outside itself; every text from configs and records is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "pvalue": pvalue,
        "crossed": crossed,
        "correlation": correlation,
    }
    finished = [record for record in study.cells.values() if record.status == "complete"]
    drawn = pictures(study, judgement)
    ladder = judgement.ladder
    return environment.get_template("ladder.html.jinja" if ladder else "report.html.jinja").render(
        sheets=ladder_words.sheets(ladder) if ladder else [],
        decoding=decoding.sheet(judgement.decoding) if judgement.decoding else None,
        study=study,
        judgement=judgement,
        design=study.design,
        report_command=_report_command(study.design["command"]),
        figures={name: Markup(picture.svg()) for name, picture in drawn.items()},
        runs=_runs(study),
        seeds={name: picture.seed for name, picture in drawn.items()},
        scale=_scale(study, finished),
        provenance=_provenance(finished),
        metrics=METRICS,
        kind=kind,
    )


def crossed(contrast: "Contrast") -> str:
    """A contrast's factors in words: each from its reference to its level."""
    steps = zip(contrast.factors, contrast.reference, contrast.levels, strict=True)
    return " x ".join(f"{name} {base} → {level}" for name, base, level in steps)


def number(value: float | None) -> str:
    """Four significant digits; nothing for what is missing."""
    return "" if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """Two significant digits with a sign: effects and their bounds."""
    return "" if value is None else f"{value:+.2g}".replace("-", "−")


def correlation(value: float) -> str:
    """Two digits; nothing where a side doesn't vary."""
    return "" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def pvalue(value: float | None) -> str:
    """Two digits, and nothing below 0.0001."""
    return "" if value is None else "<.0001" if value < 1e-4 else f"{value:.2g}"


def kind(row: Row | Planned) -> str:
    """A verdict's first word: what it is coloured by."""
    return row.verdict.split(" ")[0].rstrip(",")


def pictures(study: Study, judgement: Judgement) -> dict[str, plots.Picture]:
    """The report's figures by name, as far as the records have what they show."""
    if judgement.ladder:
        return ladder_plots.pictures(judgement.ladder)
    metric, arms = judgement.tables[0], list(study.labels.values())
    figures: dict[str, plots.Picture] = {}
    if any(row.effect for row in metric.rows):
        figures["effects"] = plots.effects(judgement.tables)
    if judgement.decoding and any(way.right for way in judgement.decoding.ways):
        figures["frontier"] = plots.frontier(judgement.decoding)
    curves = plots.bands(study, "validation", metric.metric)
    if curves:
        differences = plots.bands(study, "validation", metric.metric, minus_control=True)
        figures["curves"] = plots.lines(
            "curves",
            {f"{metric.label}, {metric.unit}".rstrip(", "): curves},
            arms,
            f"{metric.label} on validation against training tokens",
        )
        if differences:
            figures["differences"] = plots.lines(
                "differences",
                {f"{metric.label}: arm − control, {metric.unit}".rstrip(", "): differences},
                arms,
                f"paired difference of {metric.label} from the control against training tokens",
                zero=True,
            )
    loads = plots.final_loads(study)
    if loads:
        figures["load"] = plots.expert_load(loads)
    figures |= _routing_figures(study)
    by_timestep = plots.timestep_loads(study)
    if by_timestep:
        figures["timestep"] = plots.timestep_load(*by_timestep)
    return figures


def _routing_figures(study: Study) -> dict[str, plots.Picture]:
    figures: dict[str, plots.Picture] = {}
    arms = list(study.labels.values())
    vio = plots.bands(study, "validation", "load/max_vio")
    if vio:
        figures["max_vio"] = plots.lines("maxvio", {"MaxVio": vio}, arms, "MaxVio against training tokens")
    losses = {
        "load-balancing loss (1 = balanced)": plots.bands(study, "curve", "train/load_balancing"),
        "router z-loss": plots.bands(study, "curve", "train/z_loss"),
    }
    if all(losses.values()):
        figures["auxiliary"] = plots.lines("aux", losses, arms, "Auxiliary losses against training tokens")
    return figures


def _runs(study: Study) -> list[dict[str, Any]]:
    rows = []
    for arm in study.arms:
        for seed in study.bought(arm):
            record = study.cells.get((arm, seed))
            row: dict[str, Any] = {"arm": study.labels[arm], "seed": seed, "hash": ""}
            row |= {"status": "missing", "reason": "not recorded"}
            if record is not None:
                value = record.metrics.get(study.design["metric"])
                row |= {"status": record.status, "reason": record.reason or "", "hash": record.run_hash}
                row |= {"value": value, "wall_time_s": record.wall_time_s, "rate": record.tokens_per_second}
            rows.append(row)
    return rows


def _report_command(command: str) -> str:
    """`ablate report` for what `ablate run` was typed as: it takes a name, a size and a folder of runs, and no settings."""
    words = shlex.split(command)
    given = [
        f"{option} {shlex.quote(words[words.index(option) + 1])}" for option in ("--size", "--out") if option in words
    ]
    return " ".join(["ablate report", shlex.quote(words[2]), *given])


def _scale(study: Study, finished: list[Any]) -> dict[str, Any] | None:
    if not finished:
        return None
    config = finished[0].config
    tokens = [
        record.config["trainer"]["steps"]
        * record.config["trainer"]["batch_size"]
        * record.config["data"]["sequence_length"]
        for record in finished
    ]
    total = [arm["parameters"]["total"] for arm in study.design["arms"]]
    active = [arm["parameters"]["active"] for arm in study.design["arms"]]
    return {
        "total": _range(total),
        "active": _range(active),
        "tokens": _range(tokens),
        "corpus": config["data"]["corpus"],
        "flops": f"{sum(record.flops for record in finished):.2g}",
        "hours": f"{sum(record.wall_time_s for record in finished) / 3600:.2g}",
    }


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def _provenance(finished: list[Any]) -> Mapping[str, list[str]]:
    """Everything the runs say of where they came from, each value with how many runs say it."""
    seen: dict[str, dict[str, int]] = {}
    for record in finished:
        facts = {k: v for k, v in record.provenance.items() if k != "packages"}
        facts |= record.provenance.get("packages", {}) | {"data fingerprint": record.data_fingerprint}
        for key, value in facts.items():
            counts = seen.setdefault(key, {})
            counts[str(value)] = counts.get(str(value), 0) + 1
    many = len(finished)
    return {
        key: [value if n == many else f"{value} ({n} of {many} runs)" for value, n in sorted(counts.items())]
        for key, counts in seen.items()
    }
