"""The report: one self-contained HTML file, from records alone."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from analysis import formatting as words
from analysis.figures import interactive as charts
from analysis.figures import ladder as ladder_plots
from analysis.figures import ladder_interactive as ladder_charts
from analysis.figures import static as plots
from analysis.report import citation as citing
from analysis.report import run_tables as runs
from analysis.study import Study, uncollected
from analysis.table import tables_on, text
from analysis.verdicts.answer import Judgement
from core.records.metrics import METRICS
from core.records.record import write_atomically

PAGE, ASSETS = Path(__file__).parent / "page", Path(__file__).parent / "assets"
STYLES = (PAGE / "look.css", PAGE / "page.css")
SCRIPTS = (ASSETS / "d3.min.js", ASSETS / "plot.min.js", PAGE / "charts.js", PAGE / "page.js")
FIGURES = {"curves": "curves", "auxiliary": "curves", "load": "routing", "timestep": "routing"}
TITLES = {
    "verdict": "Verdict", "scaling": "Scaling", "arms": "Arms", "curves": "Curves", "routing": "Routing",
    "samplers": "Samplers", "runs": "Runs", "provenance": "Provenance", "cite": "How to cite",
}  # fmt: skip


def write_report(study: Study, judgement: Judgement, path: Path) -> None:
    """Write the report; equal records give equal bytes."""
    write_atomically(path, render(study, judgement))


@uncollected()
def render(study: Study, judgement: Judgement) -> str:
    """The report as HTML that asks for nothing outside itself; every text from configs and records is escaped.

    Without JavaScript all of its pages stand below one another, with figures as they are drawn for paper. Its policy lets no
    script run but the report's own, whatever a text holds.
    """
    finished = [record for record in study.cells.values() if record.status == "complete"]
    ladder = judgement.found.get("ladder")
    drawn = pictures(study, judgement)
    data = ladder_charts.charts(ladder) if ladder else charts.charts(study, judgement)
    scripts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    came_from = runs.provenance(finished)
    return environment().get_template("page.html.jinja").render(
        pages={name: TITLES[name] for name in _pages(judgement, drawn)},
        css=Markup("".join(path.read_text(encoding="utf-8") for path in STYLES)),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        charts=Markup(_embedded(data)),
        tables=tables_on(judgement.tables, "page"),
        study=study,
        judgement=judgement,
        design=study.design,
        report_command=_report_command(study.design.command),
        figures={name: Markup(picture.svg()) for name, picture in drawn.items()},
        alts={name: picture.alt for name, picture in drawn.items()},
        runs=runs.runs(study),
        arms=runs.arms(study, judgement.comparisons),
        seeds={name: picture.seed for name, picture in drawn.items()},
        scale=runs.scale(study, finished),
        provenance=came_from,
        interval=words.coverage(study.design.alpha),
        version=citing.version(),
        note=citing.origin(came_from),
        metrics=METRICS,
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """The templates of pages, with numbers as they are written there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for each in (words.number, words.signed, text, subscript):
        environment.filters[each.__name__] = each
    return environment


def subscript(head: str) -> Markup:
    """A heading with what follows its underscore set below the line."""
    return Markup(re.sub(r"_(\w+)$", r"<sub>\1</sub>", str(escape(head))))


def _pages(judgement: Judgement, drawn: Mapping[str, plots.Picture]) -> list[str]:
    """The pages that have something to show, in order."""
    places = {table.place for table in tables_on(judgement.tables, "page")} | {FIGURES.get(name, "") for name in drawn}
    return [name for name in TITLES if name in (*judgement.pages, *places, "runs", "provenance", "cite")]


def _policy(scripts: list[str]) -> str:
    """Content security: the report's own scripts by their hashes, styles, bitmaps in the file, nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    own = " ".join(f"'sha256-{each}'" for each in hashes)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {own}; {rest}"


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that can't end the script element that holds it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def pictures(study: Study, judgement: Judgement) -> dict[str, plots.Picture]:
    """The report's figures by name, as far as the records have what they show."""
    if ladder := judgement.found.get("ladder"):
        return ladder_plots.pictures(ladder)
    metric, arms = judgement.comparisons[0], list(study.labels.values())
    figures: dict[str, plots.Picture] = {}
    if any(row.effect for row in metric.rows):
        figures["effects"] = plots.effects(judgement.comparisons, study.design.alpha)
    decoding = judgement.found.get("decoding")
    if decoding and any(way.right for way in decoding.ways):
        figures["frontier"] = plots.frontier(decoding)
    curves = plots.bands(study, "validation", metric.metric)
    if curves:
        differences = plots.bands(study, "validation", metric.metric, minus_control=True)
        figures["curves"] = plots.lines(
            "curves",
            {metric.title: curves},
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


def _report_command(command: str) -> str:
    """`ablate report` for what `ablate run` was typed as: it takes a name, a size and a folder of runs, and no settings."""
    words = shlex.split(command)
    given = [
        f"{option} {shlex.quote(words[words.index(option) + 1])}" for option in ("--size", "--out") if option in words
    ]
    return " ".join(["ablate report", shlex.quote(words[2]), *given])
