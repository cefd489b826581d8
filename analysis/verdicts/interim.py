"""The verdict of a study whose runs are still coming in, which may be looked at as often as one likes.

The report's t intervals hold for one look, after all seeds. Here an interval is the confidence sequence of the paired
differences (`analysis.statistics.sequential`), and a p-value the smallest 1 / Bayes factor up to now; Holm adjusts over the
arms. Both allow for endless looks, so they are wider. Assumed: the order of seeds doesn't depend on their differences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.statistics.compare import VERDICT_FLOOR, holm, verdict
from analysis.statistics.sequential import confidence_sequence, strongest
from analysis.study import Study
from analysis.verdicts.arms import exploratory
from analysis.verdicts.comparisons import (
    MetricTable,
    Planned,
    Row,
    arm_notes,
    failures,
    metric_table,
    planned_contrasts,
    qualified,
)
from analysis.verdicts.until_decided import sequential_run

PENDING = "no verdict yet"


@dataclass(frozen=True)
class Comparison:
    """One comparison so far: the first arm minus the second over n pairs of finished runs, of `planned` ones.

    low, high: contain the mean difference with probability 1 - alpha whenever one looks, each on its own; infinite while
    nothing can be said. p_holm: any-time valid, of all looks so far, adjusted over the family; None below VERDICT_FLOOR.
    """

    arms: tuple[str, str]
    label: str
    n: int
    planned: int
    estimate: float | None
    low: float
    high: float
    p_holm: float | None
    verdict: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """Verdict of a study so far, in the metric of `table`. looked: of a sequential design, after how many seeds one last
    looked; else None. exploratory: as `analysis.verdicts.arms.exploratory` gives it."""

    table: MetricTable
    alpha: float
    against_control: tuple[Comparison, ...]
    contrasts: tuple[Comparison, ...]
    looked: int | None = None
    exploratory: str = ""

    @property
    def headline(self) -> str:
        """The verdicts so far, in a sentence."""
        rows = self.against_control
        if not rows:
            return "One arm: nothing is compared with it."
        told = [f"{row.label} is {row.verdict}" for row in rows if row.p_holm is not None and row.verdict != PENDING]
        open_rows = len(rows) - len(told)
        said = [f"{'; '.join(told)}."] if told else []
        if open_rows:
            said.append(f"{open_rows} of {len(rows)} comparisons open." if told else "No verdict yet.")
        return " ".join([*([self.exploratory] if self.exploratory else []), *said])


def running(study: Study) -> Running:
    """Every arm against the control in the primary metric, and the planned contrasts, from the runs there are.

    An adaptive design keeps its own looks: its intervals and p-values are those of the last one, which allow for them.
    """
    design, metric = study.design, study.design.metric
    looks, looked = None, None
    if design.adaptive is not None:
        found = sequential_run(study)
        study, looks = study.within(found.seeds), found.looks_of
        looked = max((look.seeds for look in found.looks), default=0)
    table = metric_table(study, metric, primary=True, looks=looks)
    rows = [((row.arm, design.control), row) for row in table.rows if row.verdict != "control"]
    planned = [(row.arms, row) for row in planned_contrasts(study, looks)]
    read = _by_confidence_sequences if design.adaptive is None else _of_analyses
    against_control, contrasts = (read(study, table, each) for each in (rows, planned))
    return Running(table, design.alpha, against_control, contrasts, looked, exploratory(design))


def differences(study: Study, pair: tuple[str, str], metric: str) -> np.ndarray:
    """An arm minus another within seeds, in the order in which the later run of each pair ended. Returns (n,)."""
    difference_S = study.values(pair[0], metric) - study.values(pair[1], metric)
    ended = {
        place: max(study.cells[arm, seed].finished_at for arm in pair)
        for place, seed in enumerate(study.design.seeds)
        if math.isfinite(difference_S[place])
    }
    return np.array([difference_S[place] for place in sorted(ended, key=lambda place: (ended[place], place))])


Rows = Sequence[tuple[tuple[str, str], Row | Planned]]


def _by_confidence_sequences(study: Study, table: MetricTable, rows: Rows) -> tuple[Comparison, ...]:
    alpha, family = study.design.alpha, max(1, len(rows))
    found = {pair: differences(study, pair, table.metric) for pair, row in rows if row.effect is not None}
    tested = {pair: each for pair, each in found.items() if len(each) >= VERDICT_FLOOR}
    # Comparisons without a p-value yet count as 1: the family is the planned one at every look.
    evidence = {pair: strongest(each) for pair, each in tested.items()}
    adjusted = holm([min(1.0, 1 / evidence[pair][0]) if pair in tested else 1.0 for pair, _ in rows])
    out = []
    for (pair, row), p in zip(rows, adjusted, strict=True):
        each, p_holm = found.get(pair, np.array([])), float(p) if pair in tested else None
        low, high = confidence_sequence(each, alpha=alpha)
        # Equivalence over the family by Bonferroni: the interval of alpha / family lies within the margin.
        inner = confidence_sequence(each, alpha=alpha / family) if table.margin and pair in tested else (-math.inf, 0)
        same = 0.0 if table.margin and max(map(abs, inner)) < table.margin else None
        words: str = verdict(float(each.mean()), float(p), same, goal=table.goal, alpha=alpha) if pair in tested else ""
        notes: list[str] = []
        if words.startswith(("better", "worse")) and _sign_changed(each, evidence[pair][1]):
            words, notes = "", ["there is a difference, but the mean has changed its sign since it was plain"]
        elif words.startswith(("better", "worse")) and same is not None:
            notes = [f"the difference is real but smaller than the margin of {table.margin:g}"]
        words = qualified(study, table.metric, row, words) if words.startswith(("better", "worse")) else words
        made = _comparison(study, table.metric, pair, row, words, len(each), (low, high), p_holm)
        out.append(replace(made, notes=(*made.notes, *notes)))
    return tuple(out)


def _of_analyses(study: Study, table: MetricTable, rows: Rows) -> tuple[Comparison, ...]:
    out = []
    for pair, row in rows:
        bounds = (row.effect.low, row.effect.high) if row.effect and row.p_holm is not None else (-math.inf, math.inf)
        n = row.effect.n if row.effect else 0
        words = row.verdict if row.p_holm is not None else ""
        out.append(_comparison(study, table.metric, pair, row, words, n, bounds, row.p_holm))
    return tuple(out)


def _comparison(
    study: Study, metric: str, pair: tuple[str, str], row: Row | Planned, words: str, n: int,
    bounds: tuple[float, float], p_holm: float | None,
) -> Comparison:  # fmt: skip
    effect = row.effect
    # Other notes of the report's rows may come from tests that hold for one look alone.
    notes = row.notes if effect is None else tuple(arm_notes(study, pair[0])) if isinstance(row, Row) else ()
    if isinstance(row, Row) and effect is not None and (lost := failures(study, pair[1], metric)):
        notes += (f"the control lost {lost} of its runs",)
    settled = words and not words.startswith("no ")
    return Comparison(
        arms=pair, label=row.label, n=n, planned=len(study.design.seeds),
        estimate=None if effect is None else effect.estimate, low=bounds[0], high=bounds[1], p_holm=p_holm,
        verdict=words if settled else PENDING, notes=notes,
    )  # fmt: skip


def _sign_changed(differences_S: np.ndarray, strongest_at: int) -> bool:
    """True if the mean has another sign now than where the evidence was strongest: then no direction is claimed."""
    return float(differences_S[:strongest_at].mean()) * float(differences_S.mean()) <= 0
