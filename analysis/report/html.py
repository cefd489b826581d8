"""The report: one self-contained HTML file, from records alone."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from analysis import formatting
from analysis.figure import Figure
from analysis.figures import interactive as charts
from analysis.figures import static as plots
from analysis.report import run_tables as runs
from analysis.study import Study, uncollected
from analysis.table import Table, tables_on, text
from analysis.verdicts.answer import Answer, Judgement
from analysis.verdicts.search import SearchAnswer
from core.records.metrics import METRICS
from core.records.run_record import write_atomically

PACKAGE = "moe-diffusion-ablations"
PAGE, ASSETS = Path(__file__).parent / "page", Path(__file__).parent / "assets"
STYLES = (PAGE / "look.css", PAGE / "page.css")
SCRIPTS = (ASSETS / "d3.min.js", ASSETS / "plot.min.js", PAGE / "charts.js", PAGE / "page.js")
VERDICT_PARTS = {"tests": "verdict"}  # places below the verdicts on their page
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
    shown = contents(judgement)
    scripts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    came_from = runs.provenance(finished)
    return environment().get_template("page.html.jinja").render(
        pages=_pages(judgement, shown),
        css=_styles(),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        charts=Markup(_embedded(charts.charts(judgement.figures))),
        contents=shown,
        study=study,
        judgement=judgement,
        design=study.design,
        report_command=_report_command(study.design.command),
        drawn=_drawn(judgement),
        runs=runs.runs(study),
        arms=runs.arms(study, judgement.comparisons),
        scale=runs.scale(study, finished),
        provenance=came_from,
        interval=formatting.coverage(study.design.alpha),
        version=metadata.version(PACKAGE),
        note=origin(came_from),
        metrics=METRICS,
    )  # fmt: skip


@uncollected()
def write_search(answer: SearchAnswer, path: Path) -> None:
    """Write a search's report, one page without scripts."""
    page = (
        environment()
        .get_template("search.html.jinja")
        .render(
            css=_styles(),
            answer=answer,
            content=answer.content,
            contents=contents(answer),
            drawn=_drawn(answer),
        )
    )
    write_atomically(path, page)


def _styles() -> Markup:
    return Markup("".join(path.read_text(encoding="utf-8") for path in STYLES))


def _drawn(answer: Answer) -> dict[str, list[Markup]]:
    """The pictures of every figure, by its name."""
    return {figure.name: [Markup(each.svg()) for each in plots.drawn(figure).values()] for figure in answer.figures}


def environment() -> jinja2.Environment:
    """The templates of pages, with numbers as they are written there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for each in (formatting.number, formatting.signed, text, subscript, code):
        environment.filters[each.__name__] = each
    return environment


def subscript(head: str) -> Markup:
    """A heading; a symbol with an index, such as d_z, has the index set below the line."""
    return Markup(re.sub(r"^([A-Za-z])_(\w)$", r"\1<sub>\2</sub>", str(escape(head))))


def code(prose: str) -> Markup:
    """A paragraph, what it has between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(prose))))


def contents(answer: Answer) -> dict[str, list[Table | Figure]]:
    """Tables and figures by the part of the page that they stand in, a figure below the table that it names."""
    tables = tables_on(answer.tables, "page")
    places = [each.place for each in tables] + [each.place for each in answer.figures]
    found: dict[str, list[Table | Figure]] = {place: [] for place in places}
    names = {(table.place, table.name) for table in tables}
    for figure in answer.figures:
        found[figure.place] += [] if figure.after else [figure]
    for table in tables:
        below = [each for each in answer.figures if (each.place, each.after) == (table.place, table.name)]
        found[table.place] += [table, *below]
    for figure in answer.figures:
        found[figure.place] += [figure] if figure.after and (figure.place, figure.after) not in names else []
    return found


def _pages(judgement: Judgement, places: Iterable[str]) -> dict[str, str]:
    """The titles of the pages that have something to show, in order: the known ones, and others before the list of runs."""
    own = {*judgement.pages, *(VERDICT_PARTS.get(place, place) for place in places)}
    order = [*list(TITLES)[:-3], *sorted(own - set(TITLES)), *list(TITLES)[-3:]]
    return {name: TITLES.get(name, name.capitalize()) for name in order if name in {*own, *list(TITLES)[-3:]}}


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


def origin(provenance: Mapping[str, list[str]]) -> str:
    """Commit and data in a line, as a bibliography's note has them."""
    facts = [("commit", "git_commit"), ("data", "data fingerprint")]
    parts = [f"{word} {', '.join(provenance[key])}" for word, key in facts if provenance.get(key)]
    return "; ".join(parts).translate(str.maketrans("", "", "{}\\"))


def _report_command(command: str) -> str:
    """`ablate report` for what `ablate run` was typed as: it takes a name, a size and a folder of runs, and no settings."""
    words = shlex.split(command)
    given = [
        f"{option} {shlex.quote(words[words.index(option) + 1])}" for option in ("--size", "--out") if option in words
    ]
    return " ".join(["ablate report", shlex.quote(words[2]), *given])
