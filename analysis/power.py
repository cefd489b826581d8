"""What a design can see, before it is paid for."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from core.errors import UserError

# Pairing under common random numbers makes effects of several standard deviations ordinary, but a design that sees
# nothing below four of them answers hardly any question.
MAX_DETECTABLE = 4.0
MOST_SEEDS = 10_000

_nodes, _weights = np.polynomial.legendre.leggauss(400)
NODES_Q, WEIGHTS_Q = (_nodes + 1) / 2, _weights / 2  # quadrature over the quantiles of the sample variance


@dataclass(frozen=True)
class Reach:
    """Whether a design can be expected to reach significance, and the seeds from which on it can."""

    ok: bool
    detectable_effect: float | None
    seeds_needed: int


def power_of(effect: float, n: int, *, alpha: float = 0.05, comparisons: int = 1) -> float:
    """Probability that a two-sided paired t test on n pairs at level alpha / comparisons finds an effect.

    effect: |mean difference| over the standard deviation of differences. The tail of the noncentral t distribution,
    written as the mean over the sample variance of a normal tail and integrated by quadrature: scipy.stats.nct gives
    NaN at the few degrees of freedom and large shifts that paired designs have.
    """
    df, shift = n - 1, effect * n**0.5
    critical = stats.t.isf(alpha / comparisons / 2, df)
    sd_Q = np.sqrt(stats.chi2.ppf(NODES_Q, df) / df)
    tail_Q = special.ndtr(shift - critical * sd_Q) + special.ndtr(-shift - critical * sd_Q)
    return float(WEIGHTS_Q @ tail_Q)


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
    found = optimize.brentq(lambda d: power_of(d, n, alpha=alpha, comparisons=comparisons) - power, 1e-6, upper)
    return float(found)


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
    """Whether n seeds detect some effect below MAX_DETECTABLE standard deviations, and how many seeds would."""
    needed = max(3, seeds_needed(MAX_DETECTABLE, alpha=alpha, power=power, comparisons=comparisons))
    effect = detectable_effect(n, alpha=alpha, power=power, comparisons=comparisons) if n >= 2 else math.inf
    return Reach(ok=n >= needed, detectable_effect=effect if math.isfinite(effect) else None, seeds_needed=needed)
