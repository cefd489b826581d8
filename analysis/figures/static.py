"""Figures: drawing functions on prepared data, for a page (as inlined SVG) or for a paper (as files).

Text and axes take the page's own colour (light or dark), ids are unique to the figure, and equal data give equal bytes.
"""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec
from xml.sax.saxutils import escape

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.figures.palette import ARM_COLOURS
from analysis.formatting import coverage
from analysis.study import Study
from analysis.verdicts.comparisons import MetricTable
from analysis.verdicts.parts.decoding import Decoding

INK, GRID = "#010203", "#040506"  # stand-ins, replaced by what the page says
PAPER_GRID = "#d9dde3"
VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00", "equivalent": "#0072b2"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a label with two dollar signs is a label
}

P = ParamSpec("P")


@dataclass(frozen=True)
class Band:
    """One line with a spread: x (T,), mean (T,), low and high (T,)."""

    x_T: np.ndarray
    mean_T: np.ndarray
    low_T: np.ndarray
    high_T: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A finished figure. name: what its ids begin with; alt: what it shows, in words; seed: where it shows a single one."""

    figure: Figure
    name: str
    alt: str
    seed: int | None = None

    def svg(self) -> str:
        """An SVG to be inlined in a page, in the page's own colours."""
        with matplotlib.rc_context(STYLE):
            return _svg(self.figure, self.name, self.alt)

    def save(self, path: Path) -> None:
        """Write a file on white, as its suffix says: .svg, .png or .pdf. The figure can't be inlined after that."""
        for axis in self.figure.axes:
            for part in (*axis.spines.values(), *axis.get_xgridlines(), *axis.get_ygridlines()):
                part.set(color=PAPER_GRID)
        dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)  # equal data give equal bytes
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": self.name}):
            metadata = {dated: None} if dated else {}
            self.figure.savefig(path, dpi=200, facecolor="white", metadata=metadata)


def styled(draw: Callable[P, Picture]) -> Callable[P, Picture]:
    """Hold the style from the first axis to the last byte: matplotlib reads it at every step."""

    @functools.wraps(draw)
    def drawn(*arguments: P.args, **options: P.kwargs) -> Picture:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


@styled
def effects(tables: Sequence[MetricTable], alpha: float) -> Picture:
    """Arm minus control with its interval, one panel per metric; the margin is a band around zero."""
    rows = [row for row in tables[0].rows if row.verdict != "control"]
    figure = figure_of(9.2, 1.3 + 0.34 * len(rows))
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axis, table in zip(axes, tables, strict=True):
        axis.axvline(0, color=INK, linewidth=0.8)
        if table.margin is not None:
            axis.axvspan(-table.margin, table.margin, color=VERDICT_COLOURS["equivalent"], alpha=0.12, linewidth=0)
        for place, row in enumerate(r for r in table.rows if r.verdict != "control"):
            if row.effect is None:
                axis.text(0, place, "no comparison", va="center", ha="center", fontsize=8)
                continue
            colour = VERDICT_COLOURS.get(row.verdict.split(" ")[0].rstrip(","), INK)
            axis.plot([row.effect.low, row.effect.high], [place, place], color=colour, linewidth=2.2)
            axis.plot(row.effect.estimate, place, "o", color=colour, markersize=6)
        better = "← better" if table.goal == "min" else "better →"
        axis.set_title(f"{table.label}  ({better})")
        axis.set_xlabel(f"arm − control{f', {table.unit}' if table.unit else ''}")
        axis.grid(axis="y", visible=False)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    names = ", ".join(table.label for table in tables)
    return Picture(figure, "effects", f"Effect of each arm against the control with {coverage(alpha)}s: {names}")


@styled
def frontier(found: Decoding) -> Picture:
    """Exact match with its interval against network calls of a response, one panel for each arm; the line joins ways that no
    other beats with as few calls."""
    arms = list(dict.fromkeys(way.arm for way in found.ways))
    figure = figure_of(9.2, 3.6)
    axes = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    groups = list(dict.fromkeys(group(way.label) for way in found.ways))
    for axis, arm in zip(axes, arms, strict=True):
        ways = sorted(
            (way for way in found.ways if way.arm == arm and way.right and way.calls), key=lambda way: way.calls or 0
        )
        best: list[tuple[float, float]] = []
        for way in ways:
            assert way.right is not None and way.calls is not None
            place = groups.index(group(way.label))
            colour = ARM_COLOURS[place % len(ARM_COLOURS)]
            x = way.calls * 1.02 ** (place - len(groups) / 2)  # so that equal costs don't hide each other
            axis.plot([x, x], [way.right.low, way.right.high], color=colour, linewidth=1.4)
            axis.plot(x, way.right.estimate, "o", color=colour, markersize=5, label=group(way.label))
            if not best or way.right.estimate > best[-1][1]:
                best.append((way.calls, way.right.estimate))
        if best:
            axis.plot(*zip(*best, strict=True), color=INK, linewidth=0.8, zorder=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axis.set_xlabel("network calls of a response (NFE)")
        axis.set_title(arm if len(arms) > 1 else "exact match")
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines() if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize=9)
    return Picture(figure, "frontier", f"Exact match on {found.task} against network calls, by way of decoding")


def group(label: str) -> str:
    """Part of a decoding setting's label drawn in one colour: all but the last, which sets the cost."""
    return label.rpartition(", ")[0] or label


@styled
def lines(
    name: str, panels: Mapping[str, Mapping[str, Band]], arms: Sequence[str], alt: str, *, zero: bool = False
) -> Picture:
    """Lines with bands, one panel per title; each of `arms` keeps its colour in every figure."""
    figure = figure_of(9.2, 2.9 + 0.2 * -(-len(arms) // 3))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, bands) in zip(axes, panels.items(), strict=True):
        if zero:
            axis.axhline(0, color=INK, linewidth=0.8)
        for arm, band in bands.items():
            colour = ARM_COLOURS[arms.index(arm) % len(ARM_COLOURS)]
            style = "-" if arms.index(arm) < len(ARM_COLOURS) else "--"
            axis.plot(band.x_T, band.mean_T, style, color=colour, linewidth=1.6, label=arm)
            axis.fill_between(band.x_T, band.low_T, band.high_T, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(title)
        axis.set_xlabel("training tokens")
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.locator_params(axis="x", nbins=5)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines() if not h.get_label().startswith("_")}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)), fontsize=9
        )
    return Picture(figure, name, alt)


@styled
def expert_load(loads: Mapping[str, np.ndarray]) -> Picture:
    """Heatmap of final expert load over layers x experts, one panel per arm; 1 = the balanced share.

    loads: (layers, experts) shares of assignments by arm label, mean over seeds.
    """
    columns = min(3, len(loads))
    rows = -(-len(loads) // columns)
    layers = max(load.shape[0] for load in loads.values())
    figure = figure_of(9.2, rows * (0.75 + 0.26 * layers) + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(loads) :]:
        axis.set_visible(False)
    picture = None
    for axis, (label, load_LE) in zip(grid.flat, loads.items(), strict=False):
        relative_LE = load_LE * load_LE.shape[1]
        # A mesh, not an image: an image would be a bitmap inside the SVG.
        picture = axis.pcolormesh(relative_LE, cmap="RdBu_r", vmin=0, vmax=2, edgecolors="none")
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
    return Picture(figure, "load", "Expert load by layer and expert for each arm, relative to the balanced share")


@styled
def timestep_load(loads: Mapping[str, np.ndarray], seed: int) -> Picture:
    """Expert by timestep heatmaps: a row for each arm, for each layer visible and masked tokens; 1 = balanced.

    loads: (layers, bins, 2, experts) shares of assignments by arm label, of the runs of one seed; NaN where a bin has no
    such token. Of more than three layers the first, the middle and the last are shown.
    """
    layers = max(load.shape[0] for load in loads.values())
    shown = list(range(layers)) if layers <= 3 else [0, layers // 2, layers - 1]
    figure = figure_of(9.2, 0.6 + 0.95 * len(loads))
    grid = figure.subplots(len(loads), 2 * len(shown), squeeze=False, sharex=True)
    picture = None
    for row, (label, load_LTME) in zip(grid, loads.items(), strict=True):
        for axis, (layer, status) in zip(row, ((la, m) for la in shown for m in (0, 1)), strict=True):
            if layer >= len(load_LTME):
                axis.set_visible(False)
                continue
            relative_ET = load_LTME[layer, :, status].T * load_LTME.shape[-1]
            # Bitmaps: with 64 experts a mesh would be megabytes.
            picture = axis.imshow(
                relative_ET, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto", extent=(0, 1, len(relative_ET), 0)
            )
            axis.grid(visible=False)
            axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axis.set_yticks([])
        row[0].set_ylabel("\n".join(textwrap.wrap(label, 18)), fontsize=7, rotation=0, ha="right", va="center")
    for axis, (layer, tokens) in zip(grid[0], ((la, m) for la in shown for m in ("visible", "masked")), strict=True):
        axis.set_title(f"layer {layer}, {tokens}", fontsize=8)
    for axis in grid[-1]:
        axis.set_xlabel("timestep", fontsize=8)
    assert picture is not None
    figure.colorbar(picture, ax=grid.ravel().tolist(), shrink=0.6, pad=0.02, extend="max").set_label("load / balanced")
    alt = "Share of each expert by timestep, for each arm and layer, visible and masked tokens"
    return Picture(figure, "timestep", alt, seed)


def bands(study: Study, table: str, column: str, *, minus_control: bool = False) -> dict[str, Band]:
    """A logged column of each arm against tokens, mean and standard deviation over seeds.

    table: "curve" or "validation". minus_control: paired differences from the control, seed by seed.
    """
    series = {arm: study.series(arm, table, column) for arm in study.arms}
    out = {}
    for arm, by_seed in series.items():
        if minus_control:
            base = series[study.design.control]
            by_seed = {
                s: (x, y - base[s][1]) for s, (x, y) in by_seed.items() if s in base and np.array_equal(base[s][0], x)
            }
            if arm == study.design.control or study.incomparable(column, arm, study.design.control):
                continue
        lengths = {len(y) for _, y in by_seed.values()}
        if len(lengths) != 1 or 0 in lengths:
            continue  # nothing finished, or runs logged at different steps
        values_ST = np.stack([y for _, y in by_seed.values()])
        mean_T, sd_T = values_ST.mean(0), values_ST.std(0, ddof=1) if len(values_ST) > 1 else 0 * values_ST[0]
        x_T = next(iter(by_seed.values()))[0]
        out[study.labels[arm]] = Band(x_T, mean_T, mean_T - sd_T, mean_T + sd_T)
    return out


def final_loads(study: Study) -> dict[str, np.ndarray]:
    """Each arm's expert load at the end, mean over its finished seeds. Values (layers, experts), heaviest first.

    Experts are ordered by their load in each run and layer: those of two seeds have nothing in common but their number.
    """
    out = {}
    for arm in study.arms:
        found = [
            r.expert_load["load"][-1]
            for r in study.records_of(arm)
            if r.status == "complete" and r.expert_load.get("load")
        ]
        if found:
            ordered = np.sort(np.array(found, dtype=float), axis=-1)[..., ::-1]
            out[study.labels[arm]] = np.mean(ordered, axis=0)
    return out


def timestep_loads(study: Study) -> tuple[dict[str, np.ndarray], int] | None:
    """Each arm's load by timestep at the end, in the first seed that all arms with such a load finished; and that seed.

    Of one run, because experts of different seeds have nothing in common but their number.
    """
    kept: dict[str, dict[int, np.ndarray]] = {}
    for arm in study.arms:
        for record in study.records_of(arm):
            if record.status == "complete" and "load_by_timestep" in record.routing:
                load = np.array(record.routing["load_by_timestep"], dtype=float)
                kept.setdefault(study.labels[arm], {})[record.seed] = load
    common = [seed for seed in study.design.seeds if kept and all(seed in own for own in kept.values())]
    return ({label: own[common[0]] for label, own in kept.items()}, common[0]) if common else None


def figure_of(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _lay_out(figure: Figure) -> None:
    """Place everything, once: `savefig` would draw the whole figure a first time for that."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.dpi = 72  # of SVG
        FigureCanvasSVG(figure)
        engine.execute(figure)
        figure.set_layout_engine(None)


def _svg(figure: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        _lay_out(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|href="#)', rf"\1{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--rule)")
    svg = re.sub(r"font: ([\d.]+)px 'DejaVu Sans'[^;\"]*", r"font: \1px var(--font)", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" xmlns="http://www.w3.org/2000/svg" '
                 rf'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{escape(alt)}</title>', svg, count=1)  # fmt: skip
    return svg
