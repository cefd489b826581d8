"""Figures of a ladder: loss against compute, IsoFLOP curves with their minima, routing health against scale."""

from collections.abc import Sequence

import numpy as np

from analysis.figure import Dot, Figure, Lines, Series, View
from analysis.scaling.isoflop import curve
from analysis.scaling.ladder import Health, Ladder, Point
from core.records.metrics import METRICS

HEIGHT = 3.6  # inches


def ladder_figures(ladder: Ladder) -> tuple[Figure, ...]:
    """The figures, as far as there is something to draw."""
    made = (
        _figure("compute", "law", [_compute(ladder)],
                "Loss of every run against its training FLOPs, by family; lines: the fitted law's best model for each budget",
                "Every run by family. Lines: the law's loss of the best model for each budget."),
        _figure("isoflop", "isoflop", _isoflop(ladder),
                "IsoFLOP curves: loss against active parameters for each compute budget, by family, with their minima",
                "Dots: runs. Lines: the law at each budget."),
        _figure("health", "health", _health(ladder),
                "Routing health against active parameters with 95 % prediction bands, extrapolated to the targets",
                "Dots: runs, moved along the trend to the median number of tokens. Dashed: from there to the targets, where "
                "nothing was trained. Bands: 95 % prediction intervals."),
    )  # fmt: skip
    return tuple(figure for figure in made if figure is not None)


def _figure(name: str, after: str, views: Sequence[View], alt: str, caption: str) -> Figure | None:
    shown = tuple(view for view in views if view.series)
    data = Lines(shown, {name: alt}, HEIGHT)
    return Figure(name, "scaling", alt, data, caption=caption, after=after) if shown else None


def _compute(ladder: Ladder) -> View:
    """Every run's loss against its counted FLOPs, by family, larger models with larger marks; and the law's best."""
    series = []
    for place, family in enumerate(families_of(ladder)):
        own = [point for point in ladder.points if point.family == family and point.loss is not None]
        dots = tuple(_dot(point.flops, point, (18 + 14 * _rank(ladder, point.parameters)) ** 0.5) for point in own)
        series += [Series(family, place, *best_line(ladder, family), dots=dots)] if dots else []
    rule = None if ladder.floor is None else (ladder.floor, "entropy of the source")
    label = loss_label(ladder)
    return View("loss against compute", "training FLOPs", label, tuple(series), "compute", log_x=10, rule=rule)


def best_line(ladder: Ladder, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Budgets among a family's runs and the law's loss of the best model for each; empty without a law."""
    law = ladder.laws.get(family)
    flops = [point.flops for point in ladder.points if point.family == family and point.loss is not None]
    if law is None or not flops:
        return np.array([]), np.array([])
    budgets = np.geomspace(min(flops), max(flops), 40)
    grid = np.geomspace(law.ranges["parameters"][0] / 5, law.ranges["parameters"][1] * 5, 400)
    told = ladder.modifiers(family)
    return budgets, np.array([curve(law, budget, ladder.cost(family), grid, told)[1].min() for budget in budgets])


def _isoflop(ladder: Ladder) -> list[View]:
    """Loss against active parameters at equal compute, a view for each family: runs, the law, and both minima."""
    budgets = sorted({point.budget for point in ladder.points if point.budget is not None})
    views = []
    for family in families_of(ladder):
        series = []
        for place, budget in enumerate(budgets):
            own = [p for p in ladder.points if p.family == family and p.budget == budget and p.loss is not None]
            dots = tuple(_dot(point.parameters, point) for point in own)
            line = budget_line(ladder, family, budget)
            marks = _minima(ladder, family, budget, line[0]) if len(line[0]) and own else ()
            series += [Series(f"{budget:.3g} FLOPs", place, *line, dots=dots, marks=marks)] if dots else []
        views.append(View(family, "active parameters", loss_label(ladder), tuple(series), "isoflop", log_x=10))
    return views


def _minima(ladder: Ladder, family: str, budget: float, grid: np.ndarray) -> tuple[Dot, ...]:
    """The vertex of the parabola through a budget's runs, and where the law has its least loss."""
    found = next(row for row in ladder.optima if row.family == family and row.flops == budget)
    marks = [Dot(found.measured.parameters, found.measured.loss, size=9, mark="x")] if found.measured else []
    if found.parameters is not None and found.loss is not None and grid[0] <= found.parameters.value <= grid[-1]:
        marks.append(Dot(found.parameters.value, found.loss, size=10, mark="*"))
    return tuple(marks)


def budget_line(ladder: Ladder, family: str, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes around a family's and the law's loss of each at a budget; empty without a law."""
    law = ladder.laws.get(family)
    if law is None:
        return np.array([]), np.array([])
    sizes = [point.parameters for point in ladder.points if point.family == family]
    grid = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 120)
    return grid, curve(law, budget, ladder.cost(family), grid, ladder.modifiers(family))[1]


def _dot(x: float, point: Point, size: float = 6.0) -> Dot:
    return Dot(x, point.loss or 0.0, point.label, size=size)


def _health(ladder: Ladder) -> list[View]:
    """A router's metrics against active parameters with their trends, a view for each metric."""
    views = []
    for metric in dict.fromkeys(row.metric for row in ladder.health):
        series = [each for row in ladder.health if row.metric == metric for each in _trend(ladder, row)]
        label = METRICS[metric].label
        views.append(View(label, "active parameters", label, tuple(series), "health", log_x=10, log_y=10))
    return views


def _trend(ladder: Ladder, row: Health) -> list[Series]:
    """Runs moved along the trend to the median number of tokens, the trend there, and from there to the targets."""
    own = [point for point in ladder.points if point.family == row.family and row.metric in point.health]
    place, middle = families_of(ladder).index(row.family), float(np.median([point.tokens for point in own]))
    moved = [point.health[row.metric] * (middle / point.tokens) ** row.trend.tokens.value for point in own]
    dots = tuple(Dot(point.parameters, y, "a point's runs", size=6.0) for point, y in zip(own, moved, strict=True))
    sizes = [point.parameters for point in own]
    smallest, largest = (min(sizes), middle), (max(sizes), middle)
    targets = sorted((at["parameters"], at["tokens"]) for at in ladder.targets.values())
    beyond = [largest, *(at for at in targets if at[0] > max(sizes))]
    return [
        Series(row.family, place, *predicted(row, [smallest, largest]), dots=dots, limit=row.bound),
        Series(f"{row.family}, extrapolated", place, *predicted(row, beyond), beyond=True),
    ]


def predicted(
    row: Health, corners: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """The trend along straight lines, in logs, between pairs of N and D: N, value, low and high."""
    places = np.linspace(0, len(corners) - 1, 40 * len(corners))
    n, d = (np.exp(np.interp(places, range(len(corners)), np.log(column))) for column in zip(*corners, strict=True))
    found = [row.trend.predict(*scale) for scale in zip(n, d, strict=True)]
    return list(n), [one.value for one in found], [one.low for one in found], [one.high for one in found]


def families_of(ladder: Ladder) -> list[str]:
    """Families in the order of the ladder's points."""
    return list(dict.fromkeys(point.family for point in ladder.points))


def _rank(ladder: Ladder, parameters: float) -> int:
    first = families_of(ladder)[0]
    return sum(size < 0.9 * parameters for size in {p.parameters for p in ladder.points if p.family == first})


def loss_label(ladder: Ladder) -> str:
    """The label of an axis of losses."""
    metric = METRICS[ladder.metric]
    return f"{metric.label}, {metric.unit}".rstrip(", ")
