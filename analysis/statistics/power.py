"""Power of a design: detectable effects and seeds needed."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.statistics.roots import root
from core.errors import UserError
from core.records.designs import Design

# Pairing under common random numbers makes effects of several standard deviations ordinary, but a design that sees
# nothing below four of them answers hardly any question.
MAX_DETECTABLE = 4.0
MOST_SEEDS = 10_000


def _quadrature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on (0, 1) and their weights, by Newton's method: numpy's solves an eigenproblem for them, which is
    slow and makes all processors busy."""
    x_Q = -np.cos(np.pi * (np.arange(n) + 0.75) / (n + 0.5))
    for _ in range(5):  # from a start that is right to 5 digits
        before_Q, value_Q = np.ones(n), x_Q
        for degree in range(2, n + 1):
            before_Q, value_Q = value_Q, ((2 * degree - 1) * x_Q * value_Q - (degree - 1) * before_Q) / degree
        slope_Q = n * (x_Q * value_Q - before_Q) / (x_Q * x_Q - 1)
        x_Q = x_Q - value_Q / slope_Q
    return (x_Q + 1) / 2, 1 / ((1 - x_Q * x_Q) * slope_Q * slope_Q)


NODES_Q, WEIGHTS_Q = _quadrature(400)  # over the quantiles of the sample variance


@dataclass(frozen=True)
class Reach:
    """Reach of a design: whether it can be expected to reach significance, and from how many seeds."""

    ok: bool
    detectable_effect: float | None
    seeds_needed: int


def power_of(effect: float, n: int, *, alpha: float = 0.05, comparisons: int = 1) -> float:
    """Probability that a two-sided paired t test on n pairs at level alpha / comparisons finds an effect.

    effect: |mean difference| over the standard deviation of differences. The tail of the noncentral t distribution as the
    mean over the sample variance of a normal tail, by quadrature: scipy's own gives NaN at large effects of few pairs.
    """
    shift, beyond_Q = effect * n**0.5, _critical_means(n, alpha / comparisons)
    return float(WEIGHTS_Q @ (special.ndtr(shift - beyond_Q) + special.ndtr(-shift - beyond_Q)))


@functools.lru_cache(maxsize=256)  # a search for an effect asks for the same again and again
def _critical_means(n: int, alpha: float) -> np.ndarray:
    """Means in standard errors from which on a t test on n pairs rejects, at the quantiles of the sample variance."""
    df = n - 1
    return -special.stdtrit(df, alpha / 2) * np.sqrt(2 * special.gammaincinv(df / 2, NODES_Q) / df)


def detectable_effect(n: int, *, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1) -> float:
    """The smallest effect, in standard deviations of paired differences, that n seeds detect with that power.

    comparisons: arms against one control; the level is alpha / comparisons, Holm's first and strictest step.
    Infinite where no effect below 10,000 would do. Raises UserError for fewer than 2 seeds.
    """
    if n < 2:
        raise UserError(f"seeds: a paired comparison needs at least 2, not {n}")
    upper = 1.0
    while power_of(upper, n, alpha=alpha, comparisons=comparisons) < power and upper < 1e4:
        upper *= 2
    if power_of(upper, n, alpha=alpha, comparisons=comparisons) < power:
        return math.inf
    return root(lambda d: power_of(d, n, alpha=alpha, comparisons=comparisons) - power, 1e-6, upper)


def seeds_needed(effect: float, *, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1) -> int:
    """The fewest seeds that detect an effect of that many standard deviations with that power.

    Raises UserError when the effect isn't positive or needs more than 10,000 seeds.
    """
    if not effect > 0:
        raise UserError(f"effect must be positive, not {effect}")
    low, high = 2, 4
    while power_of(effect, high, alpha=alpha, comparisons=comparisons) < power:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            raise UserError(f"an effect of {effect:g} standard deviations needs more than {MOST_SEEDS} seeds")
    while low < high:
        middle = (low + high) // 2
        enough = power_of(effect, middle, alpha=alpha, comparisons=comparisons) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def reaches_significance(n: int, *, alpha: float = 0.05, power: float = 0.8, comparisons: int = 1) -> Reach:
    """Reach of n seeds: whether they detect an effect below MAX_DETECTABLE standard deviations, and how many would."""
    needed = max(3, seeds_needed(MAX_DETECTABLE, alpha=alpha, power=power, comparisons=comparisons))
    effect = detectable_effect(n, alpha=alpha, power=power, comparisons=comparisons) if n >= 2 else math.inf
    return Reach(ok=n >= needed, detectable_effect=effect if math.isfinite(effect) else None, seeds_needed=needed)


def reach_of(design: Design) -> Reach:
    """The same of a design as records carry it: all its arms against the control."""
    arms = max(1, len(design.arms) - 1)
    return reaches_significance(len(design.seeds), alpha=design.alpha, power=design.power, comparisons=arms)
