"""A ladder's figures: loss against compute, IsoFLOP curves with their minima, routing health against scale."""

from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np

from analysis.figures.palette import ARM_COLOURS
from analysis.figures.static import INK, Picture, figure_of, styled
from analysis.scaling.isoflop import curve
from analysis.scaling.ladder import Health, Ladder, Point
from core.records.metrics import METRICS
from core.runtime.units import short

MARKERS = ("o", "s", "^", "D", "v", "P")


def pictures(ladder: Ladder) -> dict[str, Picture]:
    """The report's figures by name, as far as there is something to draw."""
    drawn: dict[str, Picture] = {}
    if any(point.loss is not None for point in ladder.points):
        drawn["compute"] = compute(ladder)
    if any(point.budget is not None and point.loss is not None for point in ladder.points):
        drawn["isoflop"] = isoflop(ladder)
    if ladder.health:
        drawn["health"] = health(ladder)
    return drawn


@styled
def compute(ladder: Ladder) -> Picture:
    """Every run's loss against its counted FLOPs, by family, and the law's loss of the best model for each budget."""
    figure = figure_of(9.2, 4.2)
    axis = figure.subplots()
    for place, family in enumerate(families_of(ladder)):
        own = [point for point in ladder.points if point.family == family and point.loss is not None]
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        axis.scatter(
            [point.flops for point in own],
            [point.loss for point in own if point.loss is not None],
            s=[18 + 14 * _rank(ladder, point.parameters) for point in own],
            marker=MARKERS[place % len(MARKERS)],
            facecolors="none",
            edgecolors=colour,
            label=family,
        )
        axis.plot(*best_line(ladder, family), color=colour, linewidth=1.2)
    if ladder.floor is not None:
        axis.axhline(ladder.floor, color=INK, linewidth=0.8, linestyle=":", label="entropy of the source")
    _scaled(axis, "training FLOPs", loss_label(ladder))
    _legend(figure, axis)
    alt = "Loss of every run against its training FLOPs, by family; lines: the fitted law's best model for each budget"
    return Picture(figure, "compute", alt)


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


@styled
def isoflop(ladder: Ladder) -> Picture:
    """Loss against active parameters at equal compute, a panel for each family: runs, the law, and both minima."""
    families = [f for f in families_of(ladder) if any(p.family == f and p.budget is not None for p in ladder.points)]
    figure = figure_of(9.2, 3.6)
    axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    budgets = sorted({point.budget for point in ladder.points if point.budget is not None})
    for axis, family in zip(axes, families, strict=True):
        for place, budget in enumerate(budgets):
            _budget(axis, ladder, family, budget, ARM_COLOURS[place % len(ARM_COLOURS)])
        axis.set_title(family)
        _scaled(axis, "active parameters", loss_label(ladder) if axis is axes[0] else "")
    _legend(figure, axes[0])
    alt = "IsoFLOP curves: loss against active parameters for each compute budget, by family, with their minima"
    return Picture(figure, "isoflop", alt)


def _budget(axis: Any, ladder: Ladder, family: str, budget: float, colour: str) -> None:
    own = [p for p in ladder.points if p.family == family and p.budget == budget and p.loss is not None]
    axis.plot([p.parameters for p in own], [p.loss for p in own], "o", color=colour, label=f"{budget:.3g} FLOPs")
    if ladder.laws.get(family) is None or not own:
        return
    grid, losses = budget_line(ladder, family, budget)
    axis.plot(grid, losses, color=colour, linewidth=1)
    found = next(row for row in ladder.optima if row.family == family and row.flops == budget)
    if found.measured is not None:
        axis.plot(found.measured.parameters, found.measured.loss, "x", color=colour, markersize=9)
    if found.parameters is not None and grid[0] <= found.parameters.value <= grid[-1]:
        axis.plot(found.parameters.value, found.loss, "*", color=colour, markersize=10)


def budget_line(ladder: Ladder, family: str, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes around a family's and the law's loss of each at a budget; empty without a law."""
    law = ladder.laws.get(family)
    if law is None:
        return np.array([]), np.array([])
    sizes = [point.parameters for point in ladder.points if point.family == family]
    grid = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 120)
    return grid, curve(law, budget, ladder.cost(family), grid, ladder.modifiers(family))[1]


@styled
def health(ladder: Ladder) -> Picture:
    """A router's metrics against active parameters: runs moved along the trend to the median number of tokens, the trend
    there, and dotted from there to the targets, where nothing was trained; with 95 % prediction bands."""
    metrics = list(dict.fromkeys(row.metric for row in ladder.health))
    figure = figure_of(9.2, 3.8)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    families = families_of(ladder)
    for axis, metric in zip(axes, metrics, strict=True):
        for row in (row for row in ladder.health if row.metric == metric):
            colour = ARM_COLOURS[families.index(row.family) % len(ARM_COLOURS)]
            _trend(axis, ladder, row, colour)
        axis.set_title(METRICS[metric].label)
        _scaled(axis, "active parameters", "")
    _legend(figure, axes[0])
    alt = "Routing health against active parameters with 95 % prediction bands, extrapolated to the targets"
    return Picture(figure, "health", alt)


def _trend(axis: Any, ladder: Ladder, row: Health, colour: str) -> None:
    axis.plot(*moved(ladder, row), "o", color=colour, label=row.family)
    for corners, style in zip(paths(ladder, row), ("-", ":"), strict=True):
        n, value, low, high = predicted(row, corners)
        axis.plot(n, value, style, color=colour, linewidth=1.4)
        axis.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0)
    if row.bound is not None:
        axis.axhline(row.bound, color=colour, linewidth=0.7, linestyle="--")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def moved(ladder: Ladder, row: Health) -> tuple[list[float], list[float]]:
    """Sizes and values of a family's points, moved along the trend to the same number of tokens: points and line compare."""
    own, middle = _points_of(ladder, row)
    values = [point.health[row.metric] * (middle / point.tokens) ** row.trend.tokens.value for point in own]
    return [point.parameters for point in own], values


def paths(ladder: Ladder, row: Health) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Corners (N, D) of a trend's line: among the runs, and from the largest of them to the targets."""
    own, middle = _points_of(ladder, row)
    sizes = [point.parameters for point in own]
    beyond = sorted((at["parameters"], at["tokens"]) for at in ladder.targets.values())
    within = [(min(sizes), middle), (max(sizes), middle)]
    return within, [within[1], *(at for at in beyond if at[0] > max(sizes))]


def predicted(row: Health, corners: Sequence[tuple[float, float]]) -> tuple[list[float], ...]:
    """The trend along straight lines, in logs, between pairs of N and D: N, value, low and high."""
    places = np.linspace(0, len(corners) - 1, 40 * len(corners))
    n, d = (np.exp(np.interp(places, range(len(corners)), np.log(column))) for column in zip(*corners, strict=True))
    found = [row.trend.predict(*scale) for scale in zip(n, d, strict=True)]
    return list(n), [one.value for one in found], [one.low for one in found], [one.high for one in found]


def _points_of(ladder: Ladder, row: Health) -> tuple[list[Point], float]:
    own = [point for point in ladder.points if point.family == row.family and row.metric in point.health]
    return own, float(np.median([point.tokens for point in own]))


def families_of(ladder: Ladder) -> list[str]:
    """Families in the order of the ladder's points."""
    return list(dict.fromkeys(point.family for point in ladder.points))


def _rank(ladder: Ladder, parameters: float) -> int:
    """Rank of a point's model by size; larger models have larger marks."""
    return sum(
        size < 0.9 * parameters for size in {p.parameters for p in ladder.points if p.family == families_of(ladder)[0]}
    )


def loss_label(ladder: Ladder) -> str:
    """Label of the axis of losses."""
    metric = METRICS[ladder.metric]
    return f"{metric.label}, {metric.unit}".rstrip(", ")


def _scaled(axis: Any, x: str, y: str) -> None:
    axis.set_xscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _legend(figure: Any, axis: Any, most: int = 5) -> None:
    handles, labels = axis.get_legend_handles_labels()
    shown: Sequence[Any] = handles
    if shown:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(most, len(handles)), fontsize=9)
