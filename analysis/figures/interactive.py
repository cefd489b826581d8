"""Figures of a page as plain data, which analysis/report/page/charts.js draws.

Three kinds. "lines": `views` to choose from, each with axes and series (a line, a band around it, dots with intervals, thin
lines of single seeds). "forest": `views` of effects with intervals. "heat": panels of layers by experts, along a slider.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.figure import ARM_COLOURS, Bars, Dot, Figure, Forest, Heat, Parallel, Series, View
from analysis.study import thinned

MOST_POINTS = 200  # of a line
MOST_FRAMES = 24  # of a heatmap along training
MOST_CELLS = 400_000  # of one heatmap's frames together: two megabytes

Chart = dict[str, Any]


def charts(figures: Sequence[Figure]) -> dict[str, Chart]:
    """The data of figures by name, of those that a page can show."""
    drawn = {figure.name: chart(figure) for figure in figures}
    return {name: found for name, found in drawn.items() if found is not None}


def chart(figure: Figure) -> Chart | None:
    """The data of a figure; None where it would weigh megabytes, or has nothing to choose from."""
    data = figure.data
    if isinstance(data, Parallel | Bars):
        return None
    if isinstance(data, Heat):
        return _heat(data)
    views = _effects(data) if isinstance(data, Forest) else [_view(view) for view in data.views if view.series]
    return {"kind": "forest" if isinstance(data, Forest) else "lines", "views": views} if views else None


def rounded(values: Iterable[float]) -> list[float | None]:
    """Five significant digits; null for what isn't a finite number."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _effects(data: Forest) -> list[Chart]:
    views = []
    for title, unit, goal, margin, effects in data.panels:
        rows = [
            {"name": row.name, "kind": row.tone, "verdict": row.verdict, "n": row.n, "at": rounded(row.ends)}
            for row in effects
            if row.ends is not None
        ]
        better = "left is better" if goal == "min" else "right is better"
        x = f"arm − control{f', {unit}' if unit else ''} ({better})"
        views += [{"title": title, "x": x, "margin": margin, "rows": rows}] if rows else []
    return views


def _view(view: View) -> Chart:
    shown: Chart = {"title": view.title, "x": view.x, "y": view.y, "series": [_series(one) for one in view.series]}
    shown |= {name: base for name, base in (("x_log", view.log_x), ("y_log", view.log_y)) if base}
    if view.rule is not None:
        shown |= {"rule": view.rule[0], "rule_label": view.rule[1]}
    return shown | {"zero": view.zero}


def _series(one: Series) -> Chart:
    """A series; dashed where colours begin again, and where it is extrapolated."""
    kept = thinned(len(one.x), MOST_POINTS) if len(one.x) else np.array([], int)
    many = len(ARM_COLOURS)
    shown: Chart = {"name": one.name, "colour": ARM_COLOURS[one.place % many]}
    shown |= {"dash": True} if one.beyond or one.place >= many else {}
    columns = {"x": one.x, "y": one.y, "low": one.low, "high": one.high}
    shown |= {name: rounded(np.asarray(own, float)[kept]) for name, own in columns.items() if own is not None}
    if one.seeds is not None:
        shown["seeds"] = [{"seed": seed, "y": rounded(np.asarray(y)[kept])} for seed, y in one.seeds.items()]
    return shown | ({"dots": [_dot(dot) for dot in one.dots]} if one.dots else {})


def _dot(dot: Dot) -> Chart:
    ends = [dot.y] if dot.low is None or dot.high is None else [dot.y, dot.low, dot.high]
    return {"x": rounded([dot.x])[0], "at": rounded(ends), "what": dot.what}


def _heat(data: Heat) -> Chart | None:
    """Per mille of the balanced share; panels with at most MOST_FRAMES frames."""
    kept = thinned(len(data.values), MOST_FRAMES)
    if not data.sliding or sum(len(kept) * frames[0].size for _, _, frames in data.panels) > MOST_CELLS:
        return None
    shown: Chart = {
        "kind": "heat", "slider": data.slider, "values": [data.values[place] for place in kept],
        "start": data.start % len(kept),
        "panels": [
            {"arm": arm, "name": name,
             "frames": [[_mille(row_E * frames.shape[-1]) for row_E in frame_LE] for frame_LE in frames[kept]]}
            for arm, name, frames in data.panels
        ],
    }  # fmt: skip
    shown |= {"ranked": True} if data.ranked else {}
    return shown | ({"seed": data.seed} if data.seed is not None else {})


def _mille(row_E: np.ndarray) -> list[int | None]:
    return [round(1000 * float(value)) if math.isfinite(value) else None for value in row_E]
