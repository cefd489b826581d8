"""Resampling by sequences: statistics of routing counts as they are, and as they would be without a dependence.

Shapes as in analysis.routing.profile. Draws are (1 + R, S): row 0 is what was seen, the rest are resamples, the same for
all layers.
"""

import numpy as np

from analysis.statistics.information import Jackknifed

BLOCK = 2**23  # numbers in a block of resamples


def plain_null(counts_SGMK: np.ndarray, bins_G: np.ndarray, signs_RG: np.ndarray) -> np.ndarray:
    """The statistic of each layer as it is (row 0), and with the signs of each row: (1 + R, S).

    sum_mk 1 / V_mk sum_b (sum_g sign_g c_gmbk)^2 / w_mb, where c is the score less the bin's share w_mb of it, so that
    estimating the pooled shares from the same data costs nothing. V_mk sums the squared scores of all bins: a bin's own
    variance would be small where a rare expert was never met. Signs are given to scores by the pooled shares of the other
    sequences: a sequence's own part in them makes its score too small, which is enough for a size of 0.07.
    """
    layers, sequences = counts_SGMK.shape[:2]
    member_GB = (bins_G[:, None] == np.arange(bins_G.max() + 1)).astype(float)
    total_SGM = counts_SGMK.sum(-1)
    all_S1M = total_SGM.sum(1, keepdims=True)
    share_SMB = _over(total_SGM.swapaxes(1, 2) @ member_GB, all_S1M.swapaxes(1, 2))
    score_SGMK = _scores(counts_SGMK, _shares(counts_SGMK.sum(1, keepdims=True)))
    scale_SM1K = np.sqrt(_over(1.0, (score_SGMK**2).sum(1)))[:, :, None]
    part_SGMBK = score_SGMK[:, :, :, None] * (
        (member_GB[:, None] - share_SMB[:, None])[..., None]
        * (np.sqrt(_over(1.0, share_SMB))[..., None] * scale_SM1K)[:, None]
    )
    seen_S = (part_SGMBK.sum(1) ** 2).sum((1, 2, 3))
    part_SGMBK *= _over(1.0, 1 - _over(total_SGM, all_S1M))[..., None, None]
    sums_RC = signs_RG @ part_SGMBK.swapaxes(0, 1).reshape(sequences, -1)
    return np.concatenate([seen_S[None], (sums_RC**2).reshape(len(signs_RG), layers, -1).sum(-1)])


def crossed_nulls(counts_SGTMK: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The statistic of each layer as it is (row 0), then under random signs, and under permuted timesteps: (1 + R, S) each.

    sum_mk 1 / V_mk sum_t (sum_g s_gtmk)^2, V_mk = sum_gt s^2, which neither changes. s is the counts less the total times the
    sequence's own shares over all timesteps.
    """
    layers, sequences, timesteps = counts_SGTMK.shape[:3]
    score = _scores(counts_SGTMK, _shares(counts_SGTMK.sum(2, keepdims=True)))
    score *= np.sqrt(_over(1.0, (score**2).sum((1, 2), keepdims=True)))
    score_GTC = score.transpose(1, 2, 0, 3, 4).reshape(sequences, timesteps, -1)
    shape = (timesteps, score_GTC.shape[2])

    def statistic(sums_RTC: np.ndarray) -> np.ndarray:
        return (sums_RTC**2).sum(1).reshape(len(sums_RTC), layers, -1).sum(-1)

    seen_1S = statistic(score_GTC.sum(0)[None])
    signed, permuted = [seen_1S], [seen_1S]
    block = max(1, BLOCK // (timesteps * max(sequences * timesteps, shape[1])))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        sums = signs(sequences, size, rng) @ score_GTC.reshape(sequences, -1)
        signed.append(statistic(sums.reshape(size, *shape)))
        order_RGT = rng.random((size, sequences, timesteps)).argsort(-1)
        # Row t of a draw adds up, over sequences, the timestep that each one's permutation put there.
        put_RTGT = order_RGT.swapaxes(1, 2)[..., None] == np.arange(timesteps)
        sums = put_RTGT.reshape(size * timesteps, -1).astype(float) @ score_GTC.reshape(sequences * timesteps, -1)
        permuted.append(statistic(sums.reshape(size, *shape)))
    return np.concatenate(signed), np.concatenate(permuted)


def band(nats: Jackknifed, signs_RG: np.ndarray, alpha: float) -> float:
    """Half-width of simultaneous bands in standard errors: the quantile of the largest, under random signs."""
    error_S = nats.standard_error
    if not (error_S > 0).any():
        return 0.0
    largest_R = np.abs(signs_RG @ nats.influence[error_S > 0].T / error_S[error_S > 0]).max(1)
    return float(np.quantile(largest_R, 1 - alpha))


def pvalues(drawn_RS: np.ndarray) -> np.ndarray:
    """(1 + how many draws are at least what was seen) / (1 + R), where row 0 is what was seen."""
    seen_S = drawn_RS[0] * (1 - 1e-9)  # sums of the same numbers in another order are equal
    return (drawn_RS >= seen_S).mean(0)


def step_down(drawn_RS: np.ndarray) -> np.ndarray:
    """p-values adjusted for the number of layers: step-down max-T, of statistics that the draws give mean 0, deviation 1."""
    mean_S, deviation_S = drawn_RS.mean(0), drawn_RS.std(0)
    varies_S = deviation_S > 1e-9 * mean_S  # else the draws differ by rounding alone
    standard_RS = (drawn_RS - mean_S) / np.where(varies_S, deviation_S, 1)
    order = standard_RS[0].argsort(kind="stable")
    rest_RS = np.maximum.accumulate(standard_RS[:, order], axis=1)  # of a layer and all that stand out less
    seen_S = standard_RS[0, order] - 1e-9
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate((rest_RS >= seen_S).mean(0)[::-1])[::-1]
    return adjusted


def signs(sequences: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Random signs, (R, G)."""
    return rng.choice((-1.0, 1.0), (resamples, sequences))


def _scores(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Counts less what their total and the shares let expect, over the last axis."""
    total = counts.sum(-1, keepdims=True)
    score = counts - total * shares
    score[np.abs(score) < 1e-9 * np.maximum(total, 1)] = 0  # divided by their own size, rounding errors would count
    return score


def _shares(counts: np.ndarray) -> np.ndarray:
    return _over(counts, counts.sum(-1, keepdims=True))


def _over(above: np.ndarray | float, below: np.ndarray) -> np.ndarray:
    """The quotient, 0 where it has none."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(below.shape), where=below > 0)
