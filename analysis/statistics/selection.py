"""Selection: the expected best of n, and the winner's value on fresh seeds.

A maximum over noisy estimates is biased upwards: of nine equal arms with three seeds each the best looks 0.86 standard
deviations better than it is. Values that weren't used to choose have no such bias.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from core.errors import UserError
from core.runtime.units import ranked


@dataclass(frozen=True)
class Confirmation:
    """The winner of a selection, and what fresh seeds say of it.

    winner: its index. estimate, low, high: mean and t interval over the n fresh seeds alone. selected: its mean in the
    selection, which is biased towards good; optimism: by how much that looked better than the estimate.
    """

    winner: int
    estimate: float
    low: float
    high: float
    n: int
    selected: float
    optimism: float


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


def confirm(
    selection_AS: ArrayLike, holdout_AS: ArrayLike, *, higher_is_better: bool = True, alpha: float = 0.05
) -> Confirmation:
    """Choose the arm with the best mean on the selection's seeds, and estimate it on the fresh ones.

    selection_AS: (A, S); holdout_AS: (A, H), the same arms on seeds that had no part in the choice. Of means that are equal
    but for rounding the first wins. Raises UserError for shapes that don't fit, fewer than 2 fresh seeds, and values that
    aren't finite.
    """
    selection, holdout = np.asarray(selection_AS, dtype=float), np.asarray(holdout_AS, dtype=float)
    if selection.ndim != 2 or holdout.ndim != 2 or len(selection) != len(holdout) or not selection.size:
        raise UserError(f"confirm: the same arms are needed in both, not shapes {selection.shape} and {holdout.shape}")
    if holdout.shape[1] < 2:
        raise UserError(f"confirm: at least 2 fresh seeds are needed for an interval, not {holdout.shape[1]}")
    if not np.isfinite(selection).all():
        raise UserError("confirm: the selection has values that aren't finite; leave failed arms out, and say so")
    means = selection.mean(axis=1)
    winner = ranked((-means if higher_is_better else means).tolist())[0]
    fresh = holdout[winner]
    if not np.isfinite(fresh).all():
        raise UserError("confirm: the winner has fresh seeds without a finite value")
    estimate = float(fresh.mean())
    half = float(-special.stdtrit(len(fresh) - 1, alpha / 2) * fresh.std(ddof=1) / len(fresh) ** 0.5)
    optimism = float(means[winner]) - estimate
    return Confirmation(
        winner=winner,
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        n=len(fresh),
        selected=float(means[winner]),
        optimism=optimism if higher_is_better else -optimism,
    )


def _log_choose(many: np.ndarray, few: int) -> np.ndarray:
    return special.gammaln(many + 1) - special.gammaln(few + 1) - special.gammaln(many - few + 1)
