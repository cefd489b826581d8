"""The report of a search: one self-contained HTML file with its history, its importances and its confirmation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from analysis.figures import search as search_plots
from analysis.figures import static as plots
from analysis.figures.picture import Picture
from analysis.formatting import coverage
from analysis.report.html import STYLES, environment
from analysis.study import uncollected
from analysis.verdicts.answer import Judgement
from analysis.verdicts.arm_figures import effects
from core.records.metrics import METRICS
from core.records.run_record import write_atomically

TITLES = {
    "history": "History", "parallel": "Configurations side by side", "importance": "Which parameters mattered",
}  # fmt: skip


@uncollected()
def write_search_page(content: Mapping[str, Any], judgement: Judgement | None, path: Path) -> None:
    """Write the page. content: what `ablate report --json` prints. judgement: of the confirmation, where there is one."""
    metric = METRICS[content["metrics"][0]]
    trials = content["trials"]
    drawn: dict[str, Picture] = {}
    if any(trial["value"] is not None for trial in trials):
        better = content["goals"][0] == "max"
        drawn["history"] = search_plots.history(trials, metric.label, higher_is_better=better)
        drawn["parallel"] = search_plots.parallel(trials, metric.label, higher_is_better=better)
    mattered = {group["group"]: group["importance"] for group in content["groups"] if group["importance"]}
    if mattered:
        drawn["importance"] = search_plots.importance(mattered)
    found = effects(judgement.comparisons, judgement.design.alpha) if judgement is not None else None
    confirmed = [Markup(picture.svg()) for picture in plots.pictures([found] if found else []).values()]
    page = environment().get_template("search.html.jinja").render(
        css=Markup("".join(each.read_text(encoding="utf-8") for each in STYLES)),
        content=content,
        judgement=judgement,
        figures={name: Markup(picture.svg()) for name, picture in drawn.items()},
        effects=Markup("").join(confirmed),
        titles=TITLES,
        interval=coverage(judgement.design.alpha) if judgement is not None else "",
        metric=metric,
    )  # fmt: skip
    write_atomically(path, page)
