"""Comparisons of a study's arms by metric: with the control, and with each other where that was planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from analysis.statistics.compare import VERDICT_FLOOR, PairedEffect, equivalence, holm, paired_effect, verdict
from analysis.statistics.sequential import anytime
from analysis.study import Study
from analysis.verdicts.until_decided import Rule, analysed_pairs, late_pairs
from core.errors import UserError
from core.records import likelihood_kind
from core.records.metrics import METRICS
from core.runtime.units import counted

AMONG = ", among runs that finished"
ACROSS = ", a bound against an exact likelihood"  # of a difference that proves nothing


@dataclass(frozen=True)
class Row:
    """One arm against the control in one metric; `effect` is None where no comparison can be made, `notes` say why."""

    arm: str
    label: str
    mean: float | None
    sd: float | None
    n: int
    effect: PairedEffect | None = None
    p_holm: float | None = None
    p_equivalence: float | None = None
    verdict: str = "no verdict"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricTable:
    """All arms in one metric, the control first. Each metric is its own family of comparisons.

    likelihoods: where arms' numbers are of different kinds, which is of which; else empty.
    """

    metric: str
    label: str
    unit: str
    goal: str
    primary: bool
    margin: float | None
    rows: tuple[Row, ...]
    likelihoods: str = ""

    @property
    def title(self) -> str:
        """The metric with its unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


@dataclass(frozen=True)
class Planned:
    """A planned comparison of two arms in the primary metric: the first minus the second; else as in `Row`."""

    arms: tuple[str, str]
    label: str
    effect: PairedEffect | None
    p_holm: float | None
    p_equivalence: float | None
    verdict: str
    notes: tuple[str, ...]


R = TypeVar("R", Row, Planned)


Looks = Mapping[tuple[str, str], Sequence[int]]


def metric_table(study: Study, metric: str, *, primary: bool, looks: Looks | None = None) -> MetricTable:
    """Every arm against the control; equivalence is tested in the primary metric alone.

    looks: of an adaptive design, by pair of arms, after how many seeds they were compared; p-values and intervals are then
    any-time valid.
    """
    design, known = study.design, METRICS[metric]
    margin, control = design.margin if primary else None, design.control
    rows, lost = [], failures(study, control, metric)
    for row in _judged(study, metric, [_draft(study, metric, arm, margin, looks) for arm in study.arms]):
        notes = row.notes
        if row.p_holm is not None:
            if row.p_holm < design.alpha and row.p_equivalence is not None and row.p_equivalence < design.alpha:
                notes += (f"the difference is real but smaller than the margin of {margin:g}",)
            if lost:  # the control's loss doesn't speak against the arm
                notes += (f"the control lost {lost} of its runs",)
        rows.append(replace(row, notes=notes))
    return MetricTable(
        metric, known.label, known.unit, known.goal, primary, margin, tuple(rows), _listed(study, metric)
    )


def planned_contrasts(study: Study, looks: Looks | None = None) -> tuple[Planned, ...]:
    """The planned contrasts in the primary metric, Holm-adjusted among themselves. looks: as for `metric_table`."""
    metric, drafts = study.design.metric, []
    for one, two in study.design.contrasts:
        effect, p_same, notes = _compared(study, metric, (one, two), study.design.margin, looks)
        label = f"{study.labels[one]} − {study.labels[two]}"
        drafts.append(Planned((one, two), label, effect, None, p_same, "no verdict", notes))
    return tuple(_judged(study, metric, drafts))


def _draft(study: Study, metric: str, arm: str, margin: float | None, looks: Looks | None) -> Row:
    control, own = study.design.control, study.values(arm, metric)
    finished = own[np.isfinite(own)]
    mean = float(finished.mean()) if len(finished) else None
    sd = float(finished.std(ddof=1)) if len(finished) > 1 else None
    notes = _notes(study, arm, metric, len(finished))
    row = Row(arm, study.labels[arm], mean, sd, len(finished), notes=notes)
    if arm == control:
        return replace(row, verdict="control")
    effect, p_same, more = _compared(study, metric, (arm, control), margin, looks)
    return replace(row, effect=effect, p_equivalence=p_same, notes=tuple(dict.fromkeys(notes + more)))


def _compared(
    study: Study, metric: str, pair: tuple[str, str], margin: float | None, looks: Looks | None
) -> tuple[PairedEffect | None, float | None, tuple[str, ...]]:
    """An arm minus another: the effect, the p-value of equivalence, neither of them adjusted, and what is to be known."""
    if reason := study.incomparable(metric, *pair):
        return None, None, (reason,)
    seen = None if looks is None else looks[pair]
    ended = 0 if seen is None else max(seen, default=0)
    # An adaptive design's comparison ends with its last look, though one of its arms may have gone on.
    own, base = (study.values(arm, metric)[: None if seen is None else ended] for arm in pair)
    both, effect, p_same, notes = np.isfinite(own) & np.isfinite(base), None, None, []
    whole_S = np.isfinite(study.values(pair[0], metric) - study.values(pair[1], metric))
    late = {} if seen is None else late_pairs(study, pair, whole_S)
    unseen = [place for place, looked in late.items() if place < ended <= looked and both[place]]
    both[unseen] = False
    if unseen:
        notes.append(
            f"{counted(len(unseen), 'pair')} trained again after its last look, which count for nothing: alpha is spent"
        )
    if seen and any(len(study.seeds_of(arm)) > ended for arm in pair):
        notes.append(
            f"compared on the first {ended} seeds alone; means are over all that an arm has, so don't subtract them"
        )
    if both.sum() != len(own):
        notes.append(f"compared on {int(both.sum())} of {len(own)} seeds, where both arms finished")
    try:
        effect = paired_effect(base[both], own[both], alpha=study.design.alpha)
        if both.sum() < VERDICT_FLOOR:
            notes.append(f"{int(both.sum())} pairs are too few for a verdict ({VERDICT_FLOOR} needed)")
        elif seen is not None:
            effect, p_same = _anytime_valid(study, effect, (own - base), seen, margin, late)
        elif margin is not None:
            p_same = equivalence(base[both], own[both], margin=margin)
    except UserError as error:
        notes.append(str(error))
    return effect, p_same, tuple(notes)


def qualified(study: Study, metric: str, row: Row | Planned, words: str) -> str:
    """A verdict's words with what limits them: a bound beside an exact likelihood, and runs that failed."""
    pair = row.arms if isinstance(row, Planned) else (row.arm, study.design.control)
    kinds, effect = study.likelihoods(metric, *pair), row.effect
    if kinds is not None and effect is not None and words.startswith(("better", "worse")):
        lower = "lower" if effect.estimate < 0 else "higher"
        words = f"{lower}{ACROSS}" if likelihood_kind.across(*kinds, effect.estimate) else words
    # The control's loss doesn't speak against the arm.
    lost = sum(failures(study, arm, metric) for arm in (pair if isinstance(row, Planned) else pair[:1]))
    return f"{words}{AMONG} ({lost} failed)" if lost else words


def _listed(study: Study, metric: str) -> str:
    arms = study.design.arms
    known = {arm.label: arm.likelihood for arm in arms if arm.likelihood is not None}
    return likelihood_kind.listed(known) if METRICS[metric].likelihood and len(known) == len(arms) else ""


def _anytime_valid(
    study: Study,
    effect: PairedEffect,
    difference_S: np.ndarray,
    looks: Sequence[int],
    margin: float | None,
    late: Mapping[int, int],
) -> tuple[PairedEffect, float | None]:
    """The same effect with an interval and p-values that hold whenever one looked."""
    rule = Rule.of_design(study.design)
    assert rule is not None  # looks are of adaptive designs
    order, shares = analysed_pairs(np.isfinite(difference_S), looks, rule, late)
    found = anytime(difference_S[order], looks=shares, margin=margin, alpha=study.design.alpha)
    return replace(effect, low=found.low, high=found.high, pvalue=found.pvalue), found.p_equivalence


def _judged(study: Study, metric: str, rows: Sequence[R]) -> list[R]:
    """The rows with p-values adjusted among them and verdicts; those with too few pairs as they are."""
    out, goal, alpha = list(rows), METRICS[metric].goal, study.design.alpha
    tested = [(place, row.effect) for place, row in enumerate(rows) if row.effect and row.effect.n >= VERDICT_FLOOR]
    # An adaptive design's family is the planned one, as it was when arms were dropped: lost comparisons stay in it.
    planned = sum(row.verdict != "control" for row in rows) if study.design.adaptive is not None else 0
    adjusted = _adjusted([effect.pvalue for _, effect in tested], planned)
    equal = [(place, p) for place, _ in tested if (p := rows[place].p_equivalence) is not None]
    same = {place: float(p) for (place, _), p in zip(equal, _adjusted([p for _, p in equal], planned), strict=True)}
    for (place, effect), p in zip(tested, adjusted, strict=True):
        words: str = verdict(effect.estimate, float(p), same.get(place), goal=goal, alpha=alpha)
        words = qualified(study, metric, rows[place], words)
        out[place] = replace(rows[place], p_holm=float(p), p_equivalence=same.get(place), verdict=words)
    return out


def _adjusted(pvalues: list[float], planned: int) -> np.ndarray:
    """Holm's adjustment of T p-values, in a family of as many as were planned where those are more. Returns (T,)."""
    untested = max(0, planned - len(pvalues))
    return holm([*pvalues, *[1.0] * untested])[: len(pvalues)]


def arm_notes(study: Study, arm: str) -> list[str]:
    """Notes on an arm for every metric: those of its design, its alarms, and its record's."""
    notes = list(study.design.by_name[arm].notes)
    alarmed = [alarm for record in study.records_of(arm) for alarm in record.alarms]
    for kind in dict.fromkeys(alarm["kind"] for alarm in alarmed):
        of_kind = [alarm for alarm in alarmed if alarm["kind"] == kind]
        notes.append(
            f"{kind} in {counted(len(of_kind), 'run')} (first: step {of_kind[0]['step']}, {of_kind[0]['detail']})"
        )
    noted = [record for record in study.records_of(arm) if record.notes]
    if noted:
        runs = counted(len(noted), "run")
        notes.append(f"what befell checkpoints of {runs} (seed {noted[0].seed}: {'; '.join(noted[0].notes)})")
    return notes


def _notes(study: Study, arm: str, metric: str, finished: int) -> tuple[str, ...]:
    notes = arm_notes(study, arm) if metric == study.design.metric else []
    failed = [record for record in study.records_of(arm) if record.status == "failed"]
    if failed:
        notes.append(f"{len(failed)} of {len(study.seeds_of(arm))} runs failed: {failed[0].reason}")
    absent = sum((arm, seed) not in study.cells for seed in study.seeds_of(arm))
    if absent:
        notes.append(f"{absent} of {len(study.seeds_of(arm))} runs are not recorded yet")
    broken = failures(study, arm, metric) - len(failed)
    if broken:
        notes.append(f"{broken} finished runs have no finite {metric}, and count as failed")
    elif finished < len(study.records_of(arm)) - len(failed):
        notes.append(f"some runs don't report {metric}")
    return tuple(notes)


def failures(study: Study, arm: str, metric: str) -> int:
    """Runs that failed, and finished ones whose metric isn't finite though the arm reports it."""
    records = study.records_of(arm)
    failed = sum(record.status == "failed" for record in records)
    if not any(metric in record.metrics for record in records if record.status == "complete"):
        return failed  # an arm without this metric at all, as a dense model has no expert load
    return failed + len(records) - failed - int(np.isfinite(study.values(arm, metric)).sum())
