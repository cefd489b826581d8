"""A page's interactive figures as plain data, which analysis/report/page/charts.js draws; figures.static draws them on paper.

Three kinds. "lines": `views` to choose from, each with axes and series (a line, a band around it, dots with intervals, thin
lines of single seeds). "forest": `views` of effects with intervals. "heat": panels of layers by experts, along a slider.
Names of series are what the legend says; colours are those of analysis.figures.static.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.figures import static as plots
from analysis.figures.palette import ARM_COLOURS
from analysis.study import Study, thinned
from analysis.verdicts.answer import Judgement
from analysis.verdicts.comparison_tables import tone
from core.records.metrics import METRICS

MOST_POINTS = 200  # of a line
MOST_RUNS = 200  # whose single lines are on the page
MOST_FRAMES = 24  # of a heatmap along training
MOST_CELLS = 400_000  # of one heatmap's frames together: two megabytes
TRAINING = {
    "train/nelbo": "NELBO on training batches, nats/token",
    "train/load_balancing": "load-balancing loss (1 = balanced)",
    "train/z_loss": "router z-loss",
    "train/gradient_norm": "gradient norm",
}

Chart = dict[str, Any]


def charts(study: Study, judgement: Judgement) -> dict[str, Chart]:
    """The figures of a study of arms by name, as far as the records have what they show."""
    found = {
        "effects": _effects(judgement),
        "curves": _curves(study, judgement),
        "frontier": _frontier(judgement),
        "load": _loads(study),
        "timestep": _timesteps(study),
    }
    return {name: chart for name, chart in found.items() if chart is not None}


def view(title: str, x: str, y: str, series: Sequence[Chart], **options: Any) -> Chart:
    """One view of a "lines" figure. options: x_log, y_log (2 or 10), zero (a line at 0), rule (a line at a value)."""
    return {"title": title, "x": x, "y": y, "series": list(series), **options}


def line(name: str, place: int, xs: Iterable[float], ys: Iterable[float], **more: Any) -> Chart:
    """A series with a line. place: of its name among its kind, which decides its colour. more: low, high, dots, seeds."""
    return {"name": name, **colour(place), "x": rounded(xs), "y": rounded(ys), **more}


def colour(place: int) -> Chart:
    """A series' colour, and dashes where colours begin again."""
    many = len(ARM_COLOURS)
    return {"colour": ARM_COLOURS[place % many], **({"dash": True} if place >= many else {})}


def rounded(values: Iterable[float]) -> list[float | None]:
    """Five significant digits; null for what isn't a finite number."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _effects(judgement: Judgement) -> Chart | None:
    views = []
    for table in judgement.comparisons:
        rows = [
            {"name": row.label, "kind": tone(row.verdict), "verdict": row.verdict, "n": row.effect.n,
             "at": rounded((row.effect.estimate, row.effect.low, row.effect.high))}
            for row in table.rows
            if row.effect is not None
        ]  # fmt: skip
        better = "left is better" if table.goal == "min" else "right is better"
        x = f"arm − control{f', {table.unit}' if table.unit else ''} ({better})"
        if rows:
            views.append({"title": table.label, "x": x, "margin": table.margin, "rows": rows})
    return {"kind": "forest", "views": views} if views else None


def _curves(study: Study, judgement: Judgement) -> Chart | None:
    wanted: list[tuple[str, str, str, bool]] = []
    for table in judgement.comparisons:
        wanted += [("validation", table.metric, table.title, minus) for minus in (False, True)]
    if "load/max_vio" not in [table.metric for table in judgement.comparisons]:
        wanted.append(("validation", "load/max_vio", METRICS["load/max_vio"].label, False))
    wanted += [("curve", name, label, False) for name, label in TRAINING.items()]
    views = [found for each in wanted if (found := _curve(study, *each))]
    return {"kind": "lines", "views": views} if views else None


def _curve(study: Study, table: str, column: str, label: str, minus: bool) -> Chart | None:
    """A column against tokens, or its paired difference from the control."""
    bands = plots.bands(study, table, column, minus_control=minus)
    base = study.series(study.design.control, table, column)
    series = []
    for place, arm in enumerate(study.arms):
        band = bands.get(study.labels[arm])
        if band is None:
            continue
        kept = thinned(len(band.x_T), MOST_POINTS)
        own = study.series(arm, table, column) if len(study.cells) <= MOST_RUNS else {}
        seeds = [
            {"seed": seed, "y": rounded((y - base[seed][1] if minus else y)[kept])}
            for seed, (x, y) in own.items()
            if len(y) == len(band.x_T) and (not minus or (seed in base and np.array_equal(base[seed][0], x)))
        ]
        spread = {"low": rounded(band.low_T[kept]), "high": rounded(band.high_T[kept])}
        series.append(line(study.labels[arm], place, band.x_T[kept], band.mean_T[kept], **spread, seeds=seeds))
    title = f"{label}: arm − control" if minus else label
    return view(title, "training tokens", title, series, zero=minus) if series else None


def _frontier(judgement: Judgement) -> Chart | None:
    found = judgement.found.get("decoding")
    if found is None:
        return None
    ways = [way for way in found.ways if way.right and way.calls]
    names = list(dict.fromkeys(plots.group(way.label) for way in ways))
    views = []
    for arm in dict.fromkeys(way.arm for way in ways):
        series = []
        for place, name in enumerate(names):
            dots = [
                {"x": rounded([way.calls or 0])[0], "at": rounded(100 * v for v in (way.right.estimate, way.right.low,
                 way.right.high)), "what": way.label}
                for way in ways
                if way.arm == arm and plots.group(way.label) == name and way.right is not None
            ]  # fmt: skip
            series += [line(name, place, (), (), dots=dots)] if dots else []
        views.append(view(arm, "network calls of a response (NFE)", "exact match, %", series, x_log=2))
    return {"kind": "lines", "views": views} if views else None


def _loads(study: Study) -> Chart | None:
    """Expert load along training: mean over seeds, experts of each layer by their load in each run."""
    panels, steps = [], None
    for arm in study.arms:
        loads = [r.expert_load for r in study.records_of(arm) if r.status == "complete" and r.expert_load.get("load")]
        if not loads:
            continue
        steps = steps or loads[0]["step"]
        if any(own["step"] != steps or np.shape(own["load"]) != np.shape(loads[0]["load"]) for own in loads):
            return None  # no slider goes through steps that differ; the picture of the last ones stays
        mean_TLE = np.mean([np.sort(np.array(own["load"], float), axis=-1)[..., ::-1] for own in loads], axis=0)
        panels.append((study.labels[arm], "all tokens", mean_TLE))
    if not panels or steps is None:
        return None
    kept = thinned(len(steps), MOST_FRAMES)
    shown = [(arm, name, values_TLE[kept]) for arm, name, values_TLE in panels]
    chart = _heat("training step", [f"{steps[place]:g}" for place in kept], shown, -1)
    return chart | {"ranked": True} if chart else None  # a column is a place by load, not an expert


def _timesteps(study: Study) -> Chart | None:
    """Expert load by timestep, of visible and masked tokens: of one seed: experts of two have only numbers in common."""
    found = plots.timestep_loads(study)
    if found is None:
        return None
    loads, seed = found
    bins = next(iter(loads.values())).shape[1]
    values = [f"{place / bins:.2g} to {(place + 1) / bins:.2g}" for place in range(bins)]
    panels = [
        (label, words, np.moveaxis(load_LTME[:, :, status], 1, 0))
        for label, load_LTME in loads.items()
        for status, words in enumerate(("visible tokens", "masked tokens"))
    ]
    chart = _heat("timestep t", values, panels, bins // 2)
    return chart | {"seed": seed} if chart else None


def _heat(
    slider: str, values: Sequence[str], panels: Sequence[tuple[str, str, np.ndarray]], start: int
) -> Chart | None:
    """panels: of (arm's label, what is shown, (frames, layers, experts) shares); per mille of the balanced share then."""
    if sum(values_TLE.size for _, _, values_TLE in panels) > MOST_CELLS:
        return None
    return {
        "kind": "heat", "slider": slider, "values": list(values), "start": start % len(values),
        "panels": [
            {"arm": arm, "name": name,
             "frames": [[_mille(row_E * values_TLE.shape[-1]) for row_E in frame_LE] for frame_LE in values_TLE]}
            for arm, name, values_TLE in panels
        ],
    }  # fmt: skip


def _mille(row_E: np.ndarray) -> list[int | None]:
    return [round(1000 * float(value)) if math.isfinite(value) else None for value in row_E]
