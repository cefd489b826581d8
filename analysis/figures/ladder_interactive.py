"""A ladder's interactive figures: what analysis.figures.ladder draws on paper, as data for a page."""

from analysis.figures.interactive import Chart, line, rounded, view
from analysis.figures.ladder import best_line, budget_line, families_of, loss_label, moved, paths, predicted
from analysis.scaling.ladder import Health, Ladder, Point
from core.records.metrics import METRICS


def charts(ladder: Ladder) -> dict[str, Chart]:
    """The figures of a ladder by name, as far as there is something to draw."""
    found = {"compute": [_compute(ladder)], "isoflop": _isoflop(ladder), "health": _health(ladder)}
    views = {name: [each for each in views if each["series"]] for name, views in found.items()}
    return {name: {"kind": "lines", "views": own} for name, own in views.items() if own}


def _compute(ladder: Ladder) -> Chart:
    series = []
    for place, family in enumerate(families_of(ladder)):
        own = [point for point in ladder.points if point.family == family and point.loss is not None]
        dots = [_dot(point.flops, point) for point in own]
        series += [line(family, place, *best_line(ladder, family), dots=dots)] if dots else []
    more = {"rule": ladder.floor, "rule_label": "entropy of the source"} if ladder.floor is not None else {}
    return view("loss against compute", "training FLOPs", loss_label(ladder), series, x_log=10, **more)


def _isoflop(ladder: Ladder) -> list[Chart]:
    budgets = sorted({point.budget for point in ladder.points if point.budget is not None})
    views = []
    for family in families_of(ladder):
        series = []
        for place, budget in enumerate(budgets):
            own = [p for p in ladder.points if p.family == family and p.budget == budget and p.loss is not None]
            dots = [_dot(point.parameters, point) for point in own]
            name = f"{budget:.3g} FLOPs"
            series += [line(name, place, *budget_line(ladder, family, budget), dots=dots)] if dots else []
        views.append(view(family, "active parameters", loss_label(ladder), series, x_log=10))
    return views


def _dot(x: float, point: Point) -> Chart:
    return {"x": rounded([x])[0], "at": rounded([point.loss or 0.0]), "what": point.label}


def _health(ladder: Ladder) -> list[Chart]:
    views = []
    for metric in dict.fromkeys(row.metric for row in ladder.health):
        rows = [row for row in ladder.health if row.metric == metric]
        series = [each for row in rows for each in _trend(ladder, row)]
        views.append(
            view(METRICS[metric].label, "active parameters", METRICS[metric].label, series, x_log=10, y_log=10)
        )
    return views


def _trend(ladder: Ladder, row: Health) -> list[Chart]:
    """Runs and the trend among them, and dashed from there to the targets."""
    place = families_of(ladder).index(row.family)
    dots = [
        {"x": rounded([x])[0], "at": rounded([y]), "what": "a point's runs"}
        for x, y in zip(*moved(ladder, row), strict=True)
    ]
    lines = [predicted(row, corners) for corners in paths(ladder, row)]
    within, beyond = (
        line(name, place, n, value, low=rounded(low), high=rounded(high))
        for name, (n, value, low, high) in zip((row.family, f"{row.family}, extrapolated"), lines, strict=True)
    )
    return [within | {"dots": dots}, beyond | {"dash": True}]
