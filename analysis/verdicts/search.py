"""The answer of a search: its own best, which having been chosen flatters, and what fresh seeds say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from analysis.figure import Bars, Dot, Figure, Lines, Parallel, Series, View
from analysis.formatting import coverage, number, pvalue, signed
from analysis.table import Cell, Column, Medium, Prose, Range, Table
from analysis.verdicts.answer import Judgement, plain
from analysis.verdicts.arm_figures import effects
from core.config.loading import text
from core.records.metrics import METRICS

BIASED = "selected for these values, therefore biased"
READ: tuple[Medium, ...] = ("page", "terminal")  # files are those of the confirmation's own tables
WIDE = 20.0  # times the smallest: a range that is shown on a logarithmic scale

Content = Mapping[str, Any]


@dataclass(frozen=True)
class SearchAnswer:
    """The answer of a search.

    content: all results, as `ablate report --json` prints them. judgement: of the confirmation, where there is one.
    """

    content: Content
    judgement: Judgement | None

    @property
    def headline(self) -> str:
        """Result of the confirmation on fresh seeds, or that there is none."""
        if self.judgement is None:
            return "Not confirmed yet: what follows is the search's own, which flatters its best."
        return self.judgement.headline

    @property
    def winner(self) -> str | None:
        """The arm of the confirmation that may be exported."""
        return None if self.judgement is None else self.judgement.winner

    @cached_property
    def tables(self) -> Sequence[Table]:
        """The search's own best, its curve and importances, and the confirmation."""
        content = self.content
        found = [
            _configurations(content, "best", f"The search's own best ({BIASED})"),
            _configurations(content, "pareto", "Pareto front"),
            _curves(content),
            _importances(content),
        ]
        found += [] if self.judgement is None else [_confirmation(content["confirmation"], self.judgement)]
        return [table for table in found if table.rows]

    @cached_property
    def figures(self) -> Sequence[Figure]:
        """The history, parallel coordinates, importances, and the confirmation's effects."""
        found: list[Figure] = []
        trials = [trial for trial in self.content["trials"] if trial["value"] is not None]
        if trials:
            metric, higher = METRICS[self.content["metrics"][0]].label, self.content["goals"][0] == "max"
            found += [_history(trials, metric, higher), _parallel(trials, metric, higher)]
        if rows := _rows(self.content, "importance"):
            found.append(_importance(rows))
        if self.judgement is not None:
            drawn = effects(self.judgement.comparisons, self.judgement.design.alpha)
            if drawn is not None:
                found.append(replace(drawn, place="confirmation", after="confirmation", title="", intro=""))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All results, JSON-ready."""
        return dict(plain(self.content))


def _rows(content: Content, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of all groups under a key, each with its group's name."""
    return [(group["group"], row) for group in content["groups"] for row in group[key]]


def _configurations(content: Content, key: str, title: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for group, row in _rows(content, key):
        words = f"the control: {row['label']}" if row["is_control"] else row["label"]
        rows.append((group, str(row["trial"]), *map(number, row["values"]), Prose(words)))
    columns = (
        Column("group", READ if any(group["group"] for group in content["groups"]) else ()),
        Column("trial"),
        *map(Column, content["metrics"]),
        Column("configuration", prose=True),
    )
    return Table(key, columns, tuple(rows), title=title, place="best", on=READ)


def _curves(content: Content) -> Table:
    """The expected best of n draws; after a guided search the best of its first n."""
    guide, step = _drawn_by(content)
    key, words = ("best_so_far", "best of the first") if guide else ("expected_best", "expected best of")
    counts = sorted({row["n"] for _, row in _rows(content, key)})
    rows: list[tuple[str, ...]] = []
    for group in content["groups"]:
        values = {row["n"]: row["value"] for row in group[key]}
        rows += [(group["group"], *(number(values.get(n)) for n in counts))] if values else []
    note = f"no expected best: {guide} proposes by what it has seen, so trials aren't random draws"
    return Table(
        key,
        (Column("n"), *(Column(str(n)) for n in counts)),
        tuple(rows),
        terminal=f"{words} n configurations at step {step}",
        below=(note,) if guide else (),
        on=("terminal",),
    )


def _importances(content: Content) -> Table:
    guide, step = _drawn_by(content)
    rows: list[tuple[str, ...]] = []
    for group, row in _rows(content, "importance"):
        tested = () if guide else (f"{row['null']:.3f}", pvalue(row["pvalue"], 0.05))
        rows.append((_parameter(group, row), f"{row['importance']:.3f}", *tested))
    null = "95 % of shuffled values stay below the null"
    if guide:
        null = f"no p-values: {guide} crowds its trials where values were good, so shuffled ones are no null"
    columns = ("parameter", "importance") if guide else ("parameter", "importance", "null", "p")
    heading = f"importance at step {step} ({null})"
    return Table("importance", tuple(map(Column, columns)), tuple(rows), terminal=heading, on=("terminal",))


def _drawn_by(content: Content) -> tuple[str | None, int | None]:
    """The sampler of a guided search, and the step at which its configurations are judged."""
    return next(((group["guided_by"], group["judged_at_step"]) for group in content["groups"]), (None, None))


def _parameter(group: str, row: Mapping[str, Any]) -> str:
    return f"{row['parameter']} ({group})" if group else str(row["parameter"])


def _confirmation(found: Content, judgement: Judgement) -> Table:
    interval, margin = coverage(judgement.design.alpha), judgement.design.margin
    rows: list[tuple[Cell, ...]] = []
    for row in found["arms"]:
        effect = row.get("effect")
        beside = Range() if effect is None else Range(signed(row["effect_low"]), signed(row["effect_high"]))
        own = Range(number(row["low"]), number(row["high"]))
        cells = (number(row["estimate"]), own, signed(effect, margin), beside, number(row["tokens"]))
        rows.append((row["arm"], row["label"], *cells, signed(row.get("selected_effect"))))
    same = "is the control itself: nothing better was found, and its row is the control's"
    seeds = f"{found['seeds'][0]} to {found['seeds'][-1]}"
    return Table(
        "confirmation",
        (
            Column("arm", on=("terminal",)),
            Column("arm", on=("page",)),
            Column("estimate"),
            Column(interval),
            Column("minus control"),
            Column(interval, terminal=interval.replace("interval", "of that")),
            Column("tokens a run", on=("page",)),
            Column("search said (biased)"),
        ),
        tuple(rows),
        title=f"Confirmation on fresh seeds {seeds}",
        place="confirmation",
        caption=f"To export: {found['winner'] or 'nothing yet'}: {found['winner_reason']}",
        terminal=f"confirmation on seeds {seeds}, which chose nothing",
        below=tuple(f"{name} {same}" for name in found["is_control"]),
        on=READ,
    )


def _history(trials: Sequence[Content], metric: str, higher_is_better: bool) -> Figure:
    """The value of every configuration in the order of trials, and the best so far of those trained to the end."""
    series = []
    for place, group in enumerate(dict.fromkeys(trial["group"] for trial in trials)):
        own = sorted((t for t in trials if t["group"] == group), key=lambda t: t["trial"])
        done = [Dot(t["trial"], t["value"], mark="o") for t in own if t["status"] == "complete"]
        rest = [Dot(t["trial"], t["value"]) for t in own if t["status"] != "complete"]
        best = (np.maximum if higher_is_better else np.minimum).accumulate([dot.y for dot in done] or [np.nan])
        at = np.array([dot.x for dot in done] or [np.nan])
        # Steps: each value holds until the next trial.
        steps = np.repeat(at, 2)[1:], np.repeat(best, 2)[:-1]
        series.append(Series(group or "configurations", place, *steps, dots=(*done, *rest)))
    alt = f"{metric} of every configuration by trial, and the best so far"
    view = View(metric, "trial", metric, tuple(series), picture="history", whole=True)
    caption = "Filled: trained to the end, with the best so far as a line. Hollow: stopped before."
    return Figure("history", "history", alt, Lines((view,), {"history": alt}), "History", caption=caption)


def _parallel(trials: Sequence[Content], metric: str, higher_is_better: bool) -> Figure:
    """Every configuration as a line over its parameters and its value."""
    order = np.argsort([t["value"] for t in trials])[:: 1 if higher_is_better else -1]  # the best are drawn last
    ranked = [trials[place] for place in order]
    keys = list(dict.fromkeys(key for t in trials for key in t["settings"]))
    columns = [_scaled([t["settings"].get(key) for t in ranked]) for key in keys]
    columns.append(_scaled([t["value"] for t in ranked]))
    data = Parallel(
        names=(*(key.rsplit(".", 1)[-1] for key in keys), metric),
        heights=np.array([heights for heights, _ in columns]).T,
        ticks=tuple(ticks for _, ticks in columns),
        best=max(1, len(trials) // 10),
    )
    alt = f"every configuration as a line over its parameters and its {metric}"
    return Figure("parallel", "parallel", alt, data, "Configurations side by side")


def _importance(rows: Sequence[tuple[str, Content]]) -> Figure:
    bars = tuple((_parameter(group, row), row["importance"], row["null"]) for group, row in rows)
    beside = " beside what chance gives" if any(mark is not None for _, _, mark in bars) else ""
    data = Bars(bars, "importance for being among the best fifth", "95 % of shuffled values")
    return Figure(
        "importance", "importance", f"importance of every parameter{beside}", data, "Which parameters mattered"
    )


def _scaled(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Heights between 0 and 1, NaN where there is no value, and what stands at the ends, or at each of a few choices."""
    given = [value for value in values if value is not None]
    if any(isinstance(value, str | bool) for value in given) or len(set(given)) < 2:
        choices = list(dict.fromkeys(given))
        places = {choice: (n / (len(choices) - 1) if len(choices) > 1 else 0.5) for n, choice in enumerate(choices)}
        return [places.get(value, np.nan) for value in values], {place: text(c) for c, place in places.items()}
    low, high = min((v for v in given if v > 0), default=0), max(given)
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
