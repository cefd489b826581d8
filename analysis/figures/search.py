"""A search's figures: its history, its configurations side by side, and which parameters mattered."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis.figure import ARM_COLOURS
from analysis.figures.picture import INK, Picture, styled
from core.config.loading import text

WIDE = 20.0  # times the smallest: a range that is shown on a logarithmic scale
WIDTH = 7.0  # inches

Trial = Mapping[str, Any]


@styled
def history(trials: Sequence[Trial], metric: str, *, higher_is_better: bool) -> Picture:
    """The value of every configuration in the order of trials, and the best so far of those trained to the end."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axis = figure.subplots()
    for place, group in enumerate(_groups(trials)):
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        own = sorted((t for t in trials if t["group"] == group and t["value"] is not None), key=lambda t: t["trial"])
        done = [t for t in own if t["status"] == "complete"]
        rest = [t for t in own if t["status"] != "complete"]
        name = group or "configurations"
        axis.plot(
            [t["trial"] for t in done], [t["value"] for t in done], "o", color=colour, label=f"{name}, to the end"
        )
        if rest:
            axis.plot(
                [t["trial"] for t in rest], [t["value"] for t in rest], "o", color=colour, fillstyle="none",
                label=f"{name}, stopped before",
            )  # fmt: skip
        best = (np.maximum if higher_is_better else np.minimum).accumulate([t["value"] for t in done] or [np.nan])
        if done:
            axis.step([t["trial"] for t in done], best, where="post", color=colour, linewidth=1)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.set_xlabel("trial")
    axis.set_ylabel(metric)
    figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return Picture(figure, "history", f"{metric} of every configuration by trial, and the best so far")


@styled
def parallel(trials: Sequence[Trial], metric: str, *, higher_is_better: bool) -> Picture:
    """Every configuration as a line over its parameters and its value; the best tenth is dark."""
    shown = [t for t in trials if t["value"] is not None]
    keys = list(dict.fromkeys(key for t in shown for key in t["settings"]))
    columns = [_scaled([t["settings"].get(key) for t in shown]) for key in keys]
    columns.append(_scaled([t["value"] for t in shown]))
    names = [*(key.rsplit(".", 1)[-1] for key in keys), metric]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    order = np.argsort([t["value"] for t in shown])[:: 1 if higher_is_better else -1]  # the best are drawn last
    for rank, place in enumerate(order):
        good = rank >= len(order) - max(1, len(order) // 10)
        points = [(x, column[0][place]) for x, column in enumerate(columns) if np.isfinite(column[0][place])]
        axis.plot(
            *zip(*points, strict=True), marker=".", color=ARM_COLOURS[0], alpha=1.0 if good else 0.25,
            linewidth=1.8 if good else 0.8,
        )  # fmt: skip
    for place, (_, ticks) in enumerate(columns):
        for height, said in ticks.items():
            axis.annotate(
                said, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center", color=INK
            )
    axis.set_xticks(range(len(columns)), [name.replace("_", "_\u200b") for name in names], rotation=20, ha="right")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(visible=True, axis="x")
    axis.set_xlim(-0.2, len(columns) - 0.4)
    return Picture(figure, "parallel", f"every configuration as a line over its parameters and its {metric}")


@styled
def importance(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """The importance of every parameter, and a mark below which 95 % of shuffled values stay, where that is known."""
    rows = [
        (f"{row['parameter']}{f' ({group})' if group else ''}", row) for group, found in groups.items() for row in found
    ]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(rows))[::-1]
    axis.barh(places, [row["importance"] for _, row in rows], height=0.6, color=ARM_COLOURS[0])
    nulls = [(row["null"], place) for (_, row), place in zip(rows, places, strict=True) if row["null"] is not None]
    if nulls:  # a guided search has none
        axis.plot(*zip(*nulls, strict=True), "|", color=INK, markersize=14, label="95 % of shuffled values")
        figure.legend(loc="outside upper right", frameon=False)
    axis.set_yticks(places, [name for name, _ in rows])
    axis.set_xlabel("importance for being among the best fifth")
    return Picture(figure, "importance", f"importance of every parameter{' beside what chance gives' if nulls else ''}")


def _groups(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(t["group"] for t in trials))


def _scaled(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Heights between 0 and 1, NaN where there is no value, and what stands at the ends, or at each of a few choices."""
    given = [value for value in values if value is not None]
    if any(isinstance(value, str | bool) for value in given) or len(set(given)) < 2:
        choices = list(dict.fromkeys(given))
        places = {choice: (n / (len(choices) - 1) if len(choices) > 1 else 0.5) for n, choice in enumerate(choices)}
        return [places.get(value, np.nan) for value in values], {place: text(c) for c, place in places.items()}
    low, high = min(v for v in given if v > 0) if max(given) > 0 else 0, max(given)
    is_log = min(given) >= 0 and low > 0 and high / low >= WIDE
    bottom = low if is_log else min(given)

    def height(value: float | None) -> float:
        if value is None:
            return np.nan
        if is_log:  # 0 has no logarithm: it stands below the rest
            return -0.12 if value == 0 else float(np.log(value / bottom) / np.log(high / bottom))
        return float((value - bottom) / (high - bottom))

    ends = {height(end): f"{end:.3g}" for end in (bottom, high)} | ({-0.12: "0"} if is_log and 0 in given else {})
    return [height(value) for value in values], ends
