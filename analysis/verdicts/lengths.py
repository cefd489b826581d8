"""Arms against their control at several sequence lengths: at each, and how the difference changes from one to the next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.compare import VERDICT_FLOOR, PairedEffect, holm, paired_effect
from core.errors import UserError


@dataclass(frozen=True)
class ByLength:
    """One arm. means: by length, over its seeds; effects: by length, arm minus control within seeds, None where there is no
    comparison; p_holm: of them, over all arms and lengths. slope: how the difference changes as the length doubles (the arm x
    length interaction), p_slope over all arms.
    """

    arm: str
    means: Mapping[int, float]
    effects: Mapping[int, PairedEffect | None]
    p_holm: Mapping[int, float]
    slope: PairedEffect | None
    p_slope: float | None


def by_length(
    values: Mapping[str, Mapping[int, Mapping[int, float]]],
    control: str,
    apart: Collection[str] = (),
    *,
    alpha: float = 0.05,
) -> tuple[ByLength, ...]:
    """Compare arms by length, with intervals of coverage 1 - alpha.

    values: a metric by arm, seed and length, each seed's at the same lengths. apart: arms whose numbers say nothing of the
    control's.
    """
    lengths = sorted({length for seeds in values.values() for at in seeds.values() for length in at})
    drafts = {
        arm: (dict.fromkeys(lengths), None) if arm in apart else _draft(values, arm, control, lengths, alpha)
        for arm in values
    }
    tested = [(arm, length) for arm, (effects, _) in drafts.items() for length in lengths if effects[length]]
    adjusted = holm([effect.pvalue for arm, length in tested if (effect := drafts[arm][0][length])])
    p_holm = {cell: float(p) for cell, p in zip(tested, adjusted, strict=True)}
    slopes = [arm for arm, (_, slope) in drafts.items() if slope]
    p_slope = dict(zip(slopes, holm([slope.pvalue for arm in slopes if (slope := drafts[arm][1])]), strict=True))
    return tuple(
        ByLength(
            arm=arm,
            means={length: float(np.mean([at[length] for at in values[arm].values()])) for length in lengths},
            effects=effects,
            p_holm={length: p_holm[arm, length] for length in lengths if (arm, length) in p_holm},
            slope=slope,
            p_slope=float(p_slope[arm]) if arm in p_slope else None,
        )
        for arm, (effects, slope) in drafts.items()
        if values[arm]
    )


def _draft(
    values: Mapping[str, Mapping[int, Mapping[int, float]]],
    arm: str,
    control: str,
    lengths: Sequence[int],
    alpha: float,
) -> tuple[dict[int, PairedEffect | None], PairedEffect | None]:
    seeds = sorted(set(values[arm]) & set(values[control]))
    if arm == control or len(seeds) < VERDICT_FLOOR:
        return dict.fromkeys(lengths), None
    own, base = (np.array([[values[each][s][n] for n in lengths] for s in seeds]) for each in (arm, control))
    effects = {length: _effect(base[:, place], own[:, place], alpha) for place, length in enumerate(lengths)}
    if len(lengths) < 2:
        return effects, None
    doublings = np.log2(lengths) - np.log2(lengths).mean()
    weight_N = doublings / (doublings**2).sum()  # of the least-squares line through a seed's lengths
    return effects, _effect(base @ weight_N, own @ weight_N, alpha)


def _effect(control_S: np.ndarray, arm_S: np.ndarray, alpha: float) -> PairedEffect | None:
    try:
        return paired_effect(control_S, arm_S, alpha=alpha)
    except UserError:  # identical in all seeds: there is nothing to be tested
        return None
