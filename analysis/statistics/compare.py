"""Paired comparisons of an arm with its control: effect, interval, adjusted p-value, verdict.

The unit is the seed: within one, all arms met the same data, masks, timesteps and initial weights, so differences are
taken within seeds. No resampling is used: at these numbers of seeds bootstrap intervals cover too little, and rank
tests can't reach 0.05 with five pairs.
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


def versus_control(
    scores_SA: ArrayLike, *, control: int = 0, method: Literal["holm", "block_dunnett"] = "holm"
) -> np.ndarray:
    """Adjusted p-values of every other arm against one control.

    scores_SA: (S, A) complete blocks. Returns (A - 1,) in the order of the arms, control left out. "holm": paired t tests,
    which hold the family-wise error rate whatever the dependence and the variances of the arms (Holm 1979).
    "block_dunnett": Dunnett's (1955) test on the residuals of a two-way layout, which pools the variance of all arms and so
    sees more with few seeds; it needs equal variances. Raises UserError as `paired_effect` does, for an unknown method, and
    for block_dunnett where the arms' residuals differ in spread (Levene's test about medians, p < 0.05): one unstable
    arm makes it wrong for all.
    """
    scores = np.asarray(scores_SA, dtype=float)
    arms = [arm for arm in range(scores.shape[1]) if arm != control]
    found = np.array([paired_effect(scores[:, control], scores[:, arm]).pvalue for arm in arms])
    if method == "holm":
        return holm(found)
    if method != "block_dunnett":
        raise UserError(f"method: unknown value {method!r}; use 'holm' or 'block_dunnett'")
    blocks, count = scores.shape
    residual_SA = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    spread = _levene(residual_SA) if count > 2 else 1.0
    if spread < 0.05:
        raise UserError(
            f"method='block_dunnett' pools the arms' variances, and they differ (Levene p = {spread:.2g}): use 'holm'"
        )
    df = (blocks - 1) * (count - 1)
    sd = math.sqrt((residual_SA**2).sum() / df)
    t_A = (scores[:, arms].mean(0) - scores[:, control].mean()) / (sd * math.sqrt(2 / blocks))
    return np.array([_dunnett_tail(abs(float(t)), len(arms), df) for t in t_A])


def _levene(values_SA: np.ndarray) -> float:
    """The p-value that all columns have the same spread about their medians (Brown & Forsythe 1974)."""
    away_SA = np.abs(values_SA - np.median(values_SA, axis=0))
    rows, columns = away_SA.shape
    between = rows * ((away_SA.mean(0) - away_SA.mean()) ** 2).sum() / (columns - 1)
    within = ((away_SA - away_SA.mean(0)) ** 2).sum() / (columns * (rows - 1))
    return float(special.fdtrc(columns - 1, columns * (rows - 1), between / within))


def _dunnett_tail(t: float, arms: int, df: int) -> float:
    """P(the largest of |T_1| ... |T_arms| >= t), T equicorrelated 1/2 with a common estimate of the variance."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    sd_Q = np.sqrt(2 * special.gammaincinv(df / 2, (nodes + 1) / 2) / df)  # over the quantiles of the sample variance
    z, w = np.polynomial.hermite_e.hermegauss(40)  # of the control's own mean
    high = special.ndtr(math.sqrt(2) * t * sd_Q[:, None] - z) - special.ndtr(-math.sqrt(2) * t * sd_Q[:, None] - z)
    inside = (high**arms) @ (w / math.sqrt(2 * math.pi))
    return float(np.clip(1 - inside @ (weights / 2), 0.0, 1.0))


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
    """Mean and standard deviation of arm - control, and how many pairs there are."""
    difference = arm - control
    sd = float(difference.std(ddof=1))
    if sd <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        raise UserError("the differences are identical in all seeds: no variance, so no t test")
    return float(difference.mean()), sd, len(difference)
