"""The NELBO of one sequence from a black-box denoiser, and the difference of two denoisers on the same masks.

With l tokens of L masked, l uniform on 1..L and the masked set uniform among those of its size, the mean of
(L / l) sum over masked -log p equals the bound's integral over mask ratios (LLaDA, arXiv 2502.09992, Eq. 14); for exact
conditionals it is -log p(x), by the chain rule over random orders. Counts are stratified, which takes most of the variance.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics.information import Estimate
from core.errors import UserError

LogProb = Callable[[np.ndarray, np.ndarray], np.ndarray]

MASK = -1  # stands for a masked token in what the function is given


def estimate(
    log_prob_masked: LogProb, x: ArrayLike, n: int, rng: np.random.Generator, *, mask_id: int = MASK
) -> Estimate:
    """The NELBO of a sequence in nats, a mean over n masks, one mask count from each of n equal parts of 1..L.

    log_prob_masked: from tokens (n, L), `mask_id` where masked, and masks (n, L) bool to log-probabilities (n, L) of the
    true tokens, 0 where not masked. x: (L,) tokens. The standard error is of successive differences over the strata: it
    errs on the large side. Raises UserError for fewer than 2 masks, an empty sequence, and probabilities above 1.
    """
    tokens, masked = _masks(x, n, rng, mask_id)
    return _of(_values(log_prob_masked, tokens, masked))


def difference(
    log_prob_a: LogProb, log_prob_b: LogProb, x: ArrayLike, n: int, rng: np.random.Generator, *, mask_id: int = MASK
) -> Estimate:
    """The NELBO under b minus that under a, on common masks: what masks have in common cancels. Else as `estimate`."""
    tokens, masked = _masks(x, n, rng, mask_id)
    return _of(_values(log_prob_b, tokens, masked) - _values(log_prob_a, tokens, masked))


def _masks(x: ArrayLike, n: int, rng: np.random.Generator, mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    tokens_L = np.asarray(x)
    if tokens_L.ndim != 1 or not len(tokens_L):
        raise UserError(f"NELBO: x must be one sequence of at least one token, not of shape {tokens_L.shape}")
    if n < 2:
        raise UserError(f"NELBO: at least 2 masks are needed for a standard error, not n={n}")
    length = len(tokens_L)
    count_n = np.floor((np.arange(n) + rng.random(n)) / n * length).astype(int) + 1
    rank_nL = rng.random((n, length)).argsort(1).argsort(1)
    masked_nL = rank_nL < np.minimum(count_n, length)[:, None]
    return np.where(masked_nL, mask_id, tokens_L), masked_nL


def _values(log_prob: LogProb, tokens_nL: np.ndarray, masked_nL: np.ndarray) -> np.ndarray:
    found = np.asarray(log_prob(tokens_nL, masked_nL), dtype=float)
    if found.shape != masked_nL.shape:
        raise UserError(f"NELBO: the function gave shape {found.shape} where {masked_nL.shape} is needed")
    if np.isnan(found).any() or (found > 1e-6).any():
        raise UserError("NELBO: the function gave what are no log-probabilities (above 0, or not a number)")
    total_n: np.ndarray = -np.where(masked_nL, found, 0.0).sum(1) * masked_nL.shape[1] / masked_nL.sum(1)
    return total_n


def _of(values_n: np.ndarray) -> Estimate:
    n = len(values_n)
    variance = (np.diff(values_n) ** 2).sum() / (2 * (n - 1))
    return Estimate(float(values_n.mean()), float(np.sqrt(variance / n)))
