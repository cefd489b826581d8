"""Selection: the expected best of n, and the winner's value on fresh seeds.

A maximum over noisy estimates is biased upwards: of nine equal arms with three seeds each the best looks 0.86 standard
deviations better than it is. Values that weren't used to choose have no such bias.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from core.errors import UserError


@dataclass(frozen=True)
class Confirmation:
    """The mean of an arm over n fresh seeds with its t interval."""

    estimate: float
    low: float
    high: float
    n: int


def expected_best(scores: ArrayLike, n: int, *, higher_is_better: bool = True) -> float:
    """The expected best score of n trials out of the N that were made, drawn without replacement.

    scores: (N,). The mean over all subsets of size n, which is unbiased (a U-statistic; Tang et al., arXiv 2004.13705).
    Raises UserError for n outside 1..N and for scores that aren't finite.
    """
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError("expected best: one row of finite scores is needed; leave failed trials out, and say so")
    many = len(values)
    if not 1 <= n <= many:
        raise UserError(f"expected best of n={n}: only {many} trials were made; nothing is known of more")
    ascending = np.sort(values if higher_is_better else -values)
    # P(the i-th smallest is the best of n) = C(i - 1, n - 1) / C(N, n)
    place = np.arange(n, many + 1)
    log_weight = _log_choose(place - 1, n - 1) - _log_choose(np.array(many), n)
    best = float(np.exp(log_weight) @ ascending[n - 1 :])
    return best if higher_is_better else -best


def confirm(fresh_S: ArrayLike, *, alpha: float = 0.05) -> Confirmation:
    """The mean of a chosen arm on seeds that had no part in the choice, with a t interval of coverage 1 - alpha.

    fresh_S: (S,). Raises UserError for fewer than 2 seeds and for values that aren't finite.
    """
    fresh = np.asarray(fresh_S, dtype=float)
    if len(fresh) < 2:
        raise UserError(f"confirm: at least 2 fresh seeds are needed for an interval, not {len(fresh)}")
    if not np.isfinite(fresh).all():
        raise UserError("confirm: the winner has fresh seeds without a finite value")
    estimate = float(fresh.mean())
    half = float(-special.stdtrit(len(fresh) - 1, alpha / 2) * fresh.std(ddof=1) / len(fresh) ** 0.5)
    return Confirmation(estimate, estimate - half, estimate + half, len(fresh))


def _log_choose(many: np.ndarray, few: int) -> np.ndarray:
    return special.gammaln(many + 1) - special.gammaln(few + 1) - special.gammaln(many - few + 1)
