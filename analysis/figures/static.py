"""Figures on paper, and on a page without scripts: drawn by matplotlib from `analysis.figure`."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np

from analysis.figure import ARM_COLOURS, Bars, Figure, Forest, Heat, Lines, Parallel, Series, View
from analysis.figures.picture import INK, Picture, figure_of, styled
from core.runtime.units import short

VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00", "equivalent": "#0072b2"}
WIDTH = 9.2  # inches
MARKERS = ("o", "s", "^", "D", "v", "P")


def pictures(figures: Iterable[Figure]) -> dict[str, Picture]:
    """All pictures by name."""
    return {name: picture for figure in figures for name, picture in drawn(figure).items()}


def drawn(figure: Figure) -> dict[str, Picture]:
    """The pictures of a figure by name: one, or of lines each that its views name."""
    data = figure.data
    if isinstance(data, Lines):
        names = dict.fromkeys(view.picture for view in data.views if view.picture and view.series)
        return {name: lines(data, name, data.alts[name]) for name in names}
    if isinstance(data, Forest):
        return {figure.name: forest(data, figure.name, figure.alt)}
    if isinstance(data, Parallel):
        return {figure.name: parallel(data, figure.name, figure.alt)}
    if isinstance(data, Bars):
        return {figure.name: bars(data, figure.name, figure.alt)}
    return {figure.name: (ranked_load if data.ranked else slider_load)(data, figure.name, figure.alt)}


@styled
def forest(data: Forest, name: str, alt: str) -> Picture:
    """Arm minus control with its interval, one panel per metric; the margin is a band around zero."""
    arms = [row.name for row in data.panels[0][-1]]
    figure = figure_of(WIDTH, 1.3 + 0.34 * len(arms))
    axes = figure.subplots(1, len(data.panels), sharey=True, squeeze=False)[0]
    for axis, (label, unit, goal, margin, rows) in zip(axes, data.panels, strict=True):
        axis.axvline(0, color=INK, linewidth=0.8)
        if margin is not None:
            axis.axvspan(-margin, margin, color=VERDICT_COLOURS["equivalent"], alpha=0.12, linewidth=0)
        for place, row in enumerate(rows):
            if row.ends is None:
                axis.text(0, place, "no comparison", va="center", ha="center", fontsize=8)
                continue
            colour = VERDICT_COLOURS.get(row.tone, INK)
            axis.plot(row.ends[1:], [place, place], color=colour, linewidth=2.2)
            axis.plot(row.ends[0], place, "o", color=colour, markersize=6)
        axis.set_title(f"{label}  ({'← better' if goal == 'min' else 'better →'})")
        axis.set_xlabel(f"arm − control{f', {unit}' if unit else ''}")
        axis.grid(axis="y", visible=False)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return Picture(figure, name, alt)


@styled
def lines(data: Lines, name: str, alt: str) -> Picture:
    """The views of one picture as panels: bands, dots and extrapolations, each name in one colour."""
    views = [view for view in data.views if view.picture == name and view.series]
    kinds = 1 + max(one.place for view in data.views for one in view.series)
    figure = figure_of(WIDTH, data.height + 0.2 * -(-kinds // 3))
    log = any(view.log_x for view in views)
    axes = figure.subplots(1, len(views), squeeze=False, sharey=log and not any(view.log_y for view in views))[0]
    for axis, view in zip(axes, views, strict=True):
        if view.zero:
            axis.axhline(0, color=INK, linewidth=0.8)
        if view.rule is not None:
            axis.axhline(view.rule[0], color=INK, linewidth=0.8, linestyle=":", label=view.rule[1])
        if view.front is not None:
            axis.plot(*view.front, color=INK, linewidth=0.8, zorder=0)
        for one in view.series:
            _series(axis, one, view, kinds)
        _axes(axis, view, first=axis is axes[0])
    _legend(figure, axes)
    return Picture(figure, name, alt)


def _series(axis: Any, one: Series, view: View, kinds: int) -> None:
    colour = ARM_COLOURS[one.place % len(ARM_COLOURS)]
    style = ":" if one.beyond else "-" if one.place < len(ARM_COLOURS) else "--"
    name = None if one.beyond else one.name
    if len(one.x):
        axis.plot(one.x, one.y, style, color=colour, linewidth=1.6, label=None if one.dots else name)
    if one.low is not None and one.high is not None:
        axis.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
    marker = MARKERS[one.place % len(MARKERS)]
    for place, dot in enumerate((*one.dots, *one.marks)):
        x = dot.x
        if dot.low is not None:
            x *= 1.02 ** (one.place - kinds / 2)  # so that equal costs don't hide each other
            axis.plot([x, x], [dot.low, dot.high], color=colour, linewidth=1.4)
        label, fill = name if place == 0 else None, "full" if dot.mark or dot.low is not None else "none"
        axis.plot(x, dot.y, dot.mark or marker, color=colour, markersize=dot.size, fillstyle=fill, label=label)
    if one.limit is not None:
        axis.axhline(one.limit, color=colour, linewidth=0.7, linestyle="--")


def _axes(axis: Any, view: View, *, first: bool) -> None:
    axis.set_title(view.panel or view.title)
    axis.set_xlabel(view.x)
    if not view.log_x:
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.locator_params(axis="x", nbins=5, integer=view.whole)
        return
    axis.set_xscale("log", base=view.log_x)
    axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    if not view.log_y:
        axis.set_ylabel(view.y if first else "")
        return
    axis.set_yscale("log", base=view.log_y)
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    handles: Mapping[str, Any] = {
        label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        columns = min(3, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)


@styled
def ranked_load(data: Heat, name: str, alt: str) -> Picture:
    """Heatmap of the last expert load over layers x experts, one panel per arm; 1 = the balanced share."""
    loads = {arm: frames[-1] for arm, _, frames in data.panels}
    columns = min(3, len(loads))
    rows = -(-len(loads) // columns)
    layers = max(load.shape[0] for load in loads.values())
    figure = figure_of(WIDTH, rows * (0.75 + 0.26 * layers) + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(loads) :]:
        axis.set_visible(False)
    picture = None
    for axis, (label, load_LE) in zip(grid.flat, loads.items(), strict=False):
        # A mesh, not an image: an image would be a bitmap inside the SVG.
        picture = axis.pcolormesh(load_LE * load_LE.shape[1], cmap="RdBu_r", vmin=0, vmax=2, edgecolors="none")
        axis.invert_yaxis()
        axis.set_title(label, fontsize=9)
        layers, experts = load_LE.shape
        axis.set_yticks(np.arange(layers) + 0.5, [str(layer) for layer in range(layers)])
        shown = range(0, experts, max(1, experts // 8))
        axis.set_xticks(np.array(shown) + 0.5, [str(expert) for expert in shown])
        axis.set_ylabel("layer")
        axis.grid(visible=False)
    grid[-1][0].set_xlabel("expert, by load")
    assert picture is not None
    bar = figure.colorbar(picture, ax=grid.ravel().tolist(), shrink=0.9, pad=0.02, extend="max")
    bar.set_label("load / balanced load")
    return Picture(figure, name, alt)


@styled
def slider_load(data: Heat, name: str, alt: str) -> Picture:
    """Expert by timestep heatmaps: a row for each arm, for each layer its panels; 1 = balanced.

    Of more than three layers the first, the middle and the last are shown.
    """
    loads: dict[str, dict[str, np.ndarray]] = {}
    for arm, what, frames in data.panels:
        loads.setdefault(arm, {})[what.removesuffix(" tokens")] = frames
    kinds = list(next(iter(loads.values())))
    layers = max(frames.shape[1] for _, _, frames in data.panels)
    shown = list(range(layers)) if layers <= 3 else [0, layers // 2, layers - 1]
    figure = figure_of(WIDTH, 0.6 + 0.95 * len(loads))
    grid = figure.subplots(len(loads), len(kinds) * len(shown), squeeze=False, sharex=True)
    cells = [(layer, kind) for layer in shown for kind in kinds]
    picture = None
    for row, (label, own) in zip(grid, loads.items(), strict=True):
        for axis, (layer, kind) in zip(row, cells, strict=True):
            if layer >= own[kind].shape[1]:
                axis.set_visible(False)
                continue
            relative_ET = own[kind][:, layer].T * own[kind].shape[-1]
            # Bitmaps: with 64 experts a mesh would be megabytes.
            picture = axis.imshow(
                relative_ET, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto", extent=(0, 1, len(relative_ET), 0)
            )
            axis.grid(visible=False)
            axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axis.set_yticks([])
        row[0].set_ylabel("\n".join(textwrap.wrap(label, 18)), fontsize=7, rotation=0, ha="right", va="center")
    for axis, (layer, kind) in zip(grid[0], cells, strict=True):
        axis.set_title(f"layer {layer}, {kind}", fontsize=8)
    for axis in grid[-1]:
        axis.set_xlabel("timestep", fontsize=8)
    assert picture is not None
    figure.colorbar(picture, ax=grid.ravel().tolist(), shrink=0.6, pad=0.02, extend="max").set_label("load / balanced")
    return Picture(figure, name, alt)


@styled
def parallel(data: Parallel, name: str, alt: str) -> Picture:
    """Lines over parallel axes; the best are dark."""
    figure = figure_of(WIDTH, 3.6)
    axis = figure.subplots()
    for place, heights in enumerate(data.heights):
        dark = place >= len(data.heights) - data.best
        known = np.flatnonzero(np.isfinite(heights))
        alpha, width = (1.0, 1.8) if dark else (0.25, 0.8)
        axis.plot(known, heights[known], marker=".", color=ARM_COLOURS[0], alpha=alpha, linewidth=width)
    for place, ticks in enumerate(data.ticks):
        for height, words in ticks.items():
            beside: Any = {"xytext": (4, 0), "textcoords": "offset points"}
            axis.annotate(words, (place, height), **beside, fontsize=8, va="center", color=INK)
    names = [name.replace("_", "_\u200b") for name in data.names]
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(visible=True, axis="x")
    axis.set_xlim(-0.2, len(names) - 0.4)
    return Picture(figure, name, alt)


@styled
def bars(data: Bars, name: str, alt: str) -> Picture:
    """Named bars below one another, with their marks."""
    figure = figure_of(WIDTH, 0.8 + 0.32 * len(data.rows))
    axis = figure.subplots()
    places = np.arange(len(data.rows))[::-1]
    axis.barh(places, [length for _, length, _ in data.rows], height=0.6, color=ARM_COLOURS[0])
    marks = [(mark, place) for (_, _, mark), place in zip(data.rows, places, strict=True) if mark is not None]
    if marks:
        axis.plot(*zip(*marks, strict=True), "|", color=INK, markersize=14, label=data.mark)
        figure.legend(loc="outside upper right")
    axis.set_yticks(places, [label for label, _, _ in data.rows])
    axis.set_xlabel(data.x)
    return Picture(figure, name, alt)
