"""Looking at the results before all seeds are in, without fooling oneself.

A t test after every new seed finds something in a quarter of all experiments in which there is nothing. The Bayes factor of
the t test (JZS; Rouder et al. 2009) is a test martingale under the null hypothesis: by Ville's inequality it ever reaches
1 / alpha with probability alpha at most (Hendriksen, de Heide & Grünwald 2021), however often one looks.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.statistics.roots import root
from core.errors import UserError

PRIOR_SCALE = 1.0  # of effect sizes: under common random numbers they are large
SHARE = 0.1  # of alpha, for looks on the way: a tenth costs the last test about 1 % of its power


@dataclass(frozen=True)
class Anytime:
    """Anytime-valid result of n differences; see `anytime`.

    low, high: contain the mean difference with probability 1 - alpha, however often one looked. sd: of the differences.
    p_equivalence: None without a margin.
    """

    estimate: float
    low: float
    high: float
    pvalue: float
    p_equivalence: float | None
    sd: float
    n: int


def bayes_factor(differences_S: ArrayLike, *, scale: float = PRIOR_SCALE) -> float:
    """Bayes factor of the differences for an effect against none (JZS; Rouder et al. 2009, Eq. 1).

    differences_S: (S,) arm - control of the seeds so far. scale: of the Cauchy prior on the standardised effect. 1 for a
    single seed; infinite for identical differences other than 0. Raises UserError for values that aren't finite.
    """
    differences = _checked(differences_S)
    n = len(differences)
    if n < 2:
        return 1.0
    sd, mean = float(differences.std(ddof=1)), float(differences.mean())
    if sd <= 1e-12 * max(1e-300, float(np.abs(differences).max())):
        return math.inf if mean else 1.0
    log = _log_factor(mean / sd * math.sqrt(n), n, scale)
    return math.exp(log) if log < 700 else math.inf


def strongest(differences_S: ArrayLike) -> tuple[float, int]:
    """The largest Bayes factor that there was on the way, 1 where there was none, and after how many differences.

    Where the first ones are identical, nothing can be tested yet: a factor without a variance would be infinite, and stay so.
    """
    differences = _checked(differences_S)
    tested = (n for n in range(2, len(differences) + 1) if not _identical(differences[:n]))
    found = [(bayes_factor(differences[:n]), n) for n in tested]
    return max(found, key=lambda each: each[0], default=(1.0, len(differences)))


def confidence_sequence(differences_S: ArrayLike, *, alpha: float = 0.05) -> tuple[float, float]:
    """An interval of the mean difference that holds at all numbers of seeds at once with probability 1 - alpha.

    The differences whose Bayes factor is below 1 / alpha at this number of seeds. Infinite where nothing can be said yet.
    """
    differences = _checked(differences_S)
    _check_level(alpha)
    n = len(differences)
    critical = _critical(n, math.log(1 / alpha)) if n > 1 and not _identical(differences) else math.inf
    if math.isinf(critical):
        return -math.inf, math.inf
    mean, half = float(differences.mean()), float(critical * differences.std(ddof=1) / math.sqrt(n))
    return mean - half, mean + half


def anytime(
    differences_S: ArrayLike, *, looks: Sequence[tuple[int, float]], margin: float | None = None, alpha: float = 0.05
) -> Anytime:
    """The test of a difference that is looked at on the way, whenever one stops.

    differences_S: (S,) in the order in which seeds came. looks: after how many of them one looked, the last after all, each
    with its share of alpha: shares are given to looks before the data are seen, and sum to 1 at most. The p-value is the
    smallest one of the looks' t tests, each over its share (Bonferroni over looks), whatever the reason to stop.
    p_equivalence: the same of two one-sided t tests against |difference| >= margin. With few looks, planned ahead, this sees
    more than the strongest Bayes factor, which allows for endless ones. Raises UserError for fewer than 2 differences,
    values that aren't finite, identical differences, and looks that don't increase to S.
    """
    differences = _checked(differences_S)
    _check_level(alpha)
    numbers, n = [number for number, _ in looks], len(differences)
    if n < 2 or not numbers or numbers[-1] != n or any(a >= b for a, b in itertools.pairwise([1, *numbers])):
        raise UserError(f"looks: increasing numbers from 2 to the {n} differences are needed, not {numbers}")
    if not all(share > 0 for _, share in looks) or math.fsum(share for _, share in looks) > 1 + 1e-9:
        raise UserError("looks: their shares of alpha must be positive and sum to 1 at most")
    if _identical(differences):
        raise UserError("the differences are identical in all seeds: no variance, so no test")
    pvalue, same, bounds = 1.0, 1.0, []
    for number, share in looks:
        part = differences[:number]
        if _identical(part):  # nothing could be tested there: its share is spent for nothing
            continue
        mean, error, df = float(part.mean()), float(part.std(ddof=1)) / math.sqrt(number), number - 1
        pvalue = min(pvalue, float(2 * special.stdtr(df, -abs(mean) / error)) / share)
        if margin is not None:
            same = min(same, float(special.stdtr(df, (abs(mean) - margin) / error)) / share)
        half = float(special.stdtrit(df, 1 - share * alpha / 2)) * error
        bounds.append((mean - half, mean + half))
    low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
    if low > high:  # the looks contradict each other, which has probability alpha at most: the newest counts
        low, high = bounds[-1]
    return Anytime(mean, low, high, pvalue, None if margin is None else same, error * math.sqrt(n), n)


def chance_of_verdict(differences_S: ArrayLike, planned: int, *, pvalue: float, margin: float | None = None) -> float:
    """Probability, given the differences so far, that t tests of all `planned` ones will reject or find equivalence.

    pvalue: that either test needs. The prediction has a flat prior on the mean, and the standard deviation seen so far:
    mean_N - mean_n is t-distributed with scale sd sqrt(1/n - 1/N).
    """
    differences = _checked(differences_S)
    n = len(differences)
    if n < 2:
        return 1.0
    if planned <= n:
        return 0.0
    sd, mean = float(differences.std(ddof=1)), float(differences.mean())
    scale = max(sd * math.sqrt(1 / n - 1 / planned), 1e-300)
    error = sd / math.sqrt(planned)
    beyond = float(special.stdtrit(planned - 1, 1 - pvalue / 2)) * error
    below, above = special.stdtr(n - 1, (np.array([-beyond, beyond]) - mean) / scale)
    chance = float(below + 1 - above)
    within = margin - float(special.stdtrit(planned - 1, 1 - pvalue)) * error if margin is not None else 0.0
    if within > 0:
        within = min(within, beyond)  # what is beyond counts as a difference already
        below, above = special.stdtr(n - 1, (np.array([-within, within]) - mean) / scale)
        chance += float(above - below)
    return min(1.0, chance)


@functools.lru_cache(maxsize=4096)
def _critical(n: int, bound: float) -> float:
    """The t statistic of n differences whose log Bayes factor is the bound; infinite where none is."""
    upper = 8.0
    while _log_factor(upper, n, PRIOR_SCALE) < bound:
        upper *= 4
        if upper > 1e9:
            return math.inf
    return root(lambda t: _log_factor(t, n, PRIOR_SCALE) - bound, 0.0, upper)


@functools.lru_cache(maxsize=1 << 16)  # whoever looks again asks for the same prefixes
def _log_factor(t: float, n: int, scale: float) -> float:
    """Log Bayes factor of a one-sample t statistic: over g ~ inverse gamma(1/2, 1/2), written as a mean over z ~ N(0, 1).

    g = scale^2 / z^2 makes the integrand bounded, and log z makes it smooth at every n.
    """
    df = n - 1
    z_Q, weights_Q = _quadrature()
    spread_Q = 1 + n * scale * scale / (z_Q * z_Q)
    null = (df + 1) / 2 * math.log1p(t * t / df)
    log_Q = null - 0.5 * np.log(spread_Q) - (df + 1) / 2 * np.log1p(t * t / (spread_Q * df)) - z_Q * z_Q / 2
    return float(special.logsumexp(log_Q, b=weights_Q))


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """z from 2e-7 to 12, evenly in log z, and weights that are those of both halves of the normal density."""
    nodes, weights = np.polynomial.legendre.leggauss(300)
    z_Q = np.exp(9.0 * nodes - 6.5)
    return z_Q, 9.0 * weights * z_Q * 2 / math.sqrt(2 * math.pi)


def _checked(differences_S: ArrayLike) -> np.ndarray:
    differences = np.asarray(differences_S, dtype=float)
    if differences.ndim != 1 or not np.isfinite(differences).all():
        raise UserError("sequential test: one row of finite differences is needed; leave failed runs out, and say so")
    return differences


def _identical(differences: np.ndarray) -> bool:
    return float(differences.std(ddof=1)) <= 1e-12 * max(1.0, float(np.abs(differences).max()))


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise UserError(f"alpha must lie in (0, 1), not {alpha}")
