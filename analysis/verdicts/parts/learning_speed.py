"""Learning speed: the tokens that an arm needs for the value that the control ends with, as a share of the control's."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.formatting import coverage, pvalue, ratio
from analysis.statistics.compare import VERDICT_FLOOR, holm, paired_effect
from analysis.study import Study
from analysis.table import EVERYWHERE, Column, Medium, Prose, Range, Table
from analysis.verdicts.answer import Context, Part, part
from analysis.verdicts.comparisons import ACROSS
from core.errors import UserError
from core.records import likelihood_kind
from core.records.metrics import METRICS

_Series = dict[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LearningSpeed:
    """Tokens that an arm needs, over those that the control needs, for the same value: below 1 the arm learns faster.

    share: geometric mean over n seeds; low, high: its t interval on the logarithm. pvalue: of share = 1. reached: in how
    many seeds the arm came to be as good as the control in the end. early: in how many the crossing lies before the first
    validation, and is taken to be there.
    """

    share: float
    low: float
    high: float
    pvalue: float
    n: int
    reached: int
    early: int


@dataclass(frozen=True)
class SpeedRow:
    """An arm's learning speed; `speed` is None where there is none to be had, and `note` says why."""

    arm: str
    label: str
    speed: LearningSpeed | None
    p_holm: float | None
    note: str


@part("learning speed", order=30)
def learning_speed_part(study: Study, context: Context) -> Part | None:
    """The learning speed of every arm; None for a brief answer, and where arms have other numbers of seeds."""
    if context.brief or context.course is not None:
        return None
    found = speeds(study)
    return Part({"speeds": found}, _tables(found, context.primary.label, study))


def _tables(found: tuple["SpeedRow", ...], metric: str, study: Study) -> tuple[Table, ...]:
    alpha, unit = study.design.alpha, study.axis.removeprefix("training ")
    columns = (
        Column("arm", file=f"{unit} for the same value"), Column("share", file="share of the control's"),
        Column(coverage(alpha)), Column("Holm p"), Column("as good in the end", ("page",)), Column("as good", ("terminal",)),
        Column("n", ("file",)), Column("", ("page",), prose=True),
    )  # fmt: skip
    rows, none = [], {place for place, row in enumerate(found) if row.speed is None}
    for row in found:
        one = row.speed
        cells: tuple[Any, ...] = ("", Range(), "", "", "", "")
        if one is not None:
            ends, reached = Range(ratio(one.low), ratio(one.high)), f"{one.reached} of {one.n}"
            cells = (ratio(one.share), ends, pvalue(row.p_holm, alpha), f"{reached} seeds", reached, str(one.n))
        rows.append((row.label, *cells, Prose(row.note, "note")))
    exact = [
        {"arm": row.arm, "label": row.label, **vars(row.speed), "p_holm": row.p_holm} for row in found if row.speed
    ]
    intro = (
        f"{study.axis.capitalize()} that an arm needs for the same {metric}, as a share of the control's: below 1 it learns "
        "faster. Seed by seed, the better of the two is followed back to where it first was as good as the other is at its "
        f"end; linear in log {unit} between validations."
    )
    hidden: dict[Medium, set[int]] = {"terminal": none, "file": none}
    line, on = f"{unit} for the same value, as a share of the control's (below 1: learns faster)", EVERYWHERE
    made = Table(
        "learning-speed", columns, tuple(rows), tuple(exact), "Learning speed", "curves", intro=intro, terminal=line,
        hidden=hidden, on=on if exact else ("page",),
    )  # fmt: skip
    return (made,) if found else ()


def speeds(study: Study) -> tuple[SpeedRow, ...]:
    """The learning speed of every arm in the study's metric, over the seeds that both it and the control finished.

    Holm adjusts over the arms. Empty where runs were validated less than twice.
    """
    metric, control = study.design.metric, study.design.control
    base = study.series(control, "validation", metric)
    if not any(len(tokens) > 1 for tokens, _ in base.values()):
        return ()
    drafts = []
    for arm in study.arms:
        if arm != control:
            try:
                speed, note = _speed(study, arm, base, study.series(arm, "validation", metric))
            except UserError as error:
                speed, note = None, str(error)
            drafts.append(SpeedRow(arm, study.labels[arm], speed, None, note))
    tested = {row.arm: row.speed.pvalue for row in drafts if row.speed and row.speed.n >= VERDICT_FLOOR}
    adjusted = dict(zip(tested, map(float, holm(list(tested.values()))), strict=True))
    return tuple(replace(row, p_holm=adjusted.get(row.arm)) for row in drafts)


def _speed(study: Study, arm: str, base: _Series, own: _Series) -> tuple[LearningSpeed, str]:
    """An arm's learning speed and a note on it. Raises UserError with the reason where there is none."""
    metric, control = study.design.metric, study.design.control
    if reason := study.incomparable(metric, arm, control):
        raise UserError(reason)
    seeds = [
        seed
        for seed in study.design.seeds
        if seed in base and seed in own and _alike(study, arm, seed, base[seed][0], own[seed][0])
        and np.isfinite(base[seed][1]).all() and np.isfinite(own[seed][1]).all()
    ]  # fmt: skip
    if not seeds:
        raise UserError("no seed in which both were validated at the same tokens")
    tokens_T, own_T = base[seeds[0]][0], own[seeds[0]][0]
    if not all(np.array_equal(base[seed][0], tokens_T) and np.array_equal(own[seed][0], own_T) for seed in seeds):
        raise UserError("seeds were validated at different tokens")
    control_ST, arm_ST = (np.stack([side[seed][1] for seed in seeds]) for side in (base, own))
    higher, alpha = METRICS[metric].goal == "max", study.design.alpha
    speed = learning_speed(tokens_T, control_ST, arm_ST, higher_is_better=higher, arm_tokens_T=own_T, alpha=alpha)
    kinds = study.likelihoods(metric, arm, control)
    if kinds is not None and likelihood_kind.across(*kinds, float((arm_ST - control_ST)[:, -1].mean())):
        raise UserError(f"not said{ACROSS}: the lower number of the exact one proves nothing")
    notes = [f"{speed.early} of {speed.n} crossings lie before the first validation"] if speed.early else []
    if len(seeds) < len(study.design.seeds):
        notes.append(f"compared on {len(seeds)} of {len(study.design.seeds)} seeds, validated alike in both arms")
    return speed, "; ".join(notes)


def _alike(study: Study, arm: str, seed: int, control_T: np.ndarray, arm_T: np.ndarray) -> bool:
    """True if two runs were validated at the same tokens, or have first stages, whose tokens count too."""
    staged = any(study.cells[each, seed].before for each in (arm, study.design.control))
    return staged or np.array_equal(control_T, arm_T)


def learning_speed(
    tokens_T: ArrayLike,
    control_ST: ArrayLike,
    arm_ST: ArrayLike,
    *,
    higher_is_better: bool = False,
    alpha: float = 0.05,
    arm_tokens_T: ArrayLike | None = None,
) -> LearningSpeed:
    """Tokens to the worse of both arms' final values: the better arm's crossing over the whole run, seed by seed.

    tokens_T: (T,) increasing counts of tokens at which both were validated; control_ST, arm_ST: (S, T) values, paired by
    seed. arm_tokens_T: the arm's tokens, where they aren't the control's. Where the arm ends better, its share is (tokens at
    which it first is as good as the control's end) / (all tokens of the control); where it ends worse, all its tokens over
    those at which the control first is as good as the arm's end; where both end the same, the one's first crossing over the
    other's. So exchanging the arms inverts it. Between validations the value is linear in log tokens. Raises UserError for
    shapes that don't fit, values that aren't finite, fewer than 2 seeds or 2 validations, and equal shares in all seeds.
    """
    tokens, control, arm = (np.asarray(each, dtype=float) for each in (tokens_T, control_ST, arm_ST))
    own_tokens = tokens if arm_tokens_T is None else np.asarray(arm_tokens_T, dtype=float)
    for counts, values in ((tokens, control), (own_tokens, arm)):
        if counts.ndim != 1 or values.ndim != 2 or values.shape != (len(control), len(counts)):
            raise UserError(f"learning speed: shapes {counts.shape} and {values.shape} don't fit")
        if len(counts) < 2 or not (counts[0] > 0 and (np.diff(counts) > 0).all()):
            raise UserError(
                "learning speed: at least 2 validations are needed, at increasing numbers of tokens above 0"
            )
    if not (np.isfinite(control).all() and np.isfinite(arm).all()):
        raise UserError("learning speed: all values must be finite; leave failed runs out, and say so")
    if higher_is_better:
        control, arm = -control, -arm
    logs, early = np.empty(len(arm)), 0
    ahead = arm[:, -1] <= control[:, -1]
    x_T, own_x_T = np.log(tokens), np.log(own_tokens)
    for seed, (base_T, own_T) in enumerate(zip(control, arm, strict=True)):
        target = max(base_T[-1], own_T[-1])
        # The one that ends worse is as good as its own end at the end, unless both end there.
        tie = base_T[-1] == own_T[-1]
        own = _first_below(own_x_T, own_T, target) if tie or ahead[seed] else own_x_T[-1]
        base = _first_below(x_T, base_T, target) if tie or not ahead[seed] else x_T[-1]
        logs[seed] = own - base
        early += bool((own_T if ahead[seed] else base_T)[0] <= target)
    if early == len(logs) and np.ptp(logs) == 0:  # all crossings lie before the first validation: bounds, not values
        raise UserError("in all seeds one is as good as the other's end at the first validation: validate more often")
    effect = paired_effect(np.zeros_like(logs), logs, alpha=alpha)
    share, low, high = map(math.exp, (effect.estimate, effect.low, effect.high))
    return LearningSpeed(share, low, high, effect.pvalue, effect.n, reached=int(ahead.sum()), early=early)


def _first_below(x_T: np.ndarray, y_T: np.ndarray, target: float) -> float:
    """First point at which a curve reaches the target, as its last value does."""
    place = int(np.argmax(y_T <= target))
    if place == 0:
        return float(x_T[0])
    before, after = y_T[place - 1], y_T[place]
    return float(x_T[place - 1] + (x_T[place] - x_T[place - 1]) * (before - target) / (before - after))
