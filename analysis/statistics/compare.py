"""Paired comparisons of an arm with its control: effect, interval, adjusted p-value, verdict.

The unit is the seed: within one, all arms met the same data, masks, timesteps and initial weights. No resampling is used: at
these numbers of seeds bootstrap intervals cover too little, and rank tests can't reach 0.05 with five pairs.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from core.errors import UserError

VERDICT_FLOOR = 3  # two pairs have one degree of freedom: an interval, but no verdict

Verdict = Literal[
    "better",
    "worse",
    "no detectable difference at this resolution",
    "equivalent within the margin",
]


@dataclass(frozen=True)
class PairedEffect:
    """Arm minus control over n seeds, in the metric's unit.

    low, high: t interval of the mean difference. pvalue: two-sided paired t test. effect_size: mean difference over the
    standard deviation of differences. correlation: of the pairs (NaN when one side doesn't vary): what pairing bought.
    """

    estimate: float
    low: float
    high: float
    pvalue: float
    effect_size: float
    correlation: float
    sd: float
    n: int


def paired_effect(control_S: ArrayLike, arm_S: ArrayLike, *, alpha: float = 0.05) -> PairedEffect:
    """The mean difference arm - control over seeds, with a t interval of coverage 1 - alpha.

    control_S, arm_S: (S,) values of the same seeds in the same order. Assumes that differences are independent and
    near normal. Raises UserError for fewer than 2 pairs, unequal shapes, non-finite values and identical differences
    (without variance there is no t test).
    """
    control, arm = _pairs(control_S, arm_S)
    mean, sd, n = _differences(control, arm)
    error = sd / math.sqrt(n)
    reach = float(-special.stdtrit(n - 1, alpha / 2)) * error
    varied = control.std() > 0 and arm.std() > 0
    return PairedEffect(
        estimate=mean,
        low=mean - reach,
        high=mean + reach,
        pvalue=float(2 * special.stdtr(n - 1, -abs(mean) / error)),
        effect_size=mean / sd,
        correlation=float(np.corrcoef(control, arm)[0, 1]) if varied else math.nan,
        sd=sd,
        n=n,
    )


def holm(pvalues_A: ArrayLike) -> np.ndarray:
    """Step-down adjusted p-values (Holm 1979). Takes and returns (A,); empty stays empty."""
    # Not statsmodels.stats.multitest: it takes seconds to import, which every verdict would wait for.
    pvalues = np.asarray(pvalues_A, dtype=float)
    order = pvalues.argsort()
    stepped = pvalues[order] * np.arange(len(pvalues), 0, -1)
    adjusted = np.empty_like(pvalues)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped)) if len(pvalues) else stepped
    return adjusted


def equivalence(control_S: ArrayLike, arm_S: ArrayLike, *, margin: float) -> float:
    """p-value of two one-sided paired t tests against |difference| >= margin (Schuirmann 1987).

    Small values let "no difference larger than the margin" be claimed. Raises UserError as `paired_effect` does, and
    for a margin that isn't positive.
    """
    if not margin > 0:
        raise UserError(f"margin must be positive, not {margin}")
    mean, sd, n = _differences(*_pairs(control_S, arm_S))
    return float(special.stdtr(n - 1, (abs(mean) - margin) / (sd / math.sqrt(n))))


def verdict(
    estimate: float, p_adjusted: float, p_equivalence: float | None, *, goal: str, alpha: float = 0.05
) -> Verdict:
    """The comparison in words: a difference that is significant after adjustment, else equivalence, else neither."""
    if p_adjusted < alpha:
        return "better" if (estimate < 0) == (goal == "min") else "worse"
    if p_equivalence is not None and p_equivalence < alpha:
        return "equivalent within the margin"
    return "no detectable difference at this resolution"


def _pairs(control_S: ArrayLike, arm_S: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    control, arm = np.asarray(control_S, dtype=float), np.asarray(arm_S, dtype=float)
    if control.ndim != 1 or control.shape != arm.shape:
        raise UserError(f"pairs need two rows of equal length, not shapes {control.shape} and {arm.shape}")
    if len(control) < 2:
        raise UserError(f"a paired comparison needs at least 2 seeds, not {len(control)}")
    if not (np.isfinite(control).all() and np.isfinite(arm).all()):
        raise UserError("a paired comparison needs finite values: exclude failed runs first, and say so")
    return control, arm


def _differences(control: np.ndarray, arm: np.ndarray) -> tuple[float, float, int]:
    difference = arm - control
    sd = float(difference.std(ddof=1))
    if sd <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        raise UserError("the differences are identical in all seeds: no variance, so no t test")
    return float(difference.mean()), sd, len(difference)
