"""Means and tests of right answers when models (seeds) and prompts are both clusters.

A model's answers to many prompts are alike, and so are many models' answers to one prompt. Shapes: S models, N prompts, W
decoding configurations, the control first.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

PERMUTATIONS = 4999


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over models and prompts, with an interval for other models and other prompts of the kind."""

    estimate: float
    low: float
    high: float
    se: float
    df: int

    def pvalue(self) -> float:
        """Two-sided, that the mean is 0."""
        return float(2 * special.stdtr(self.df, -abs(self._t(0.0))))

    def p_equivalence(self, margin: float) -> float:
        """Of two one-sided tests against a mean as large as the margin (Schuirmann 1987)."""
        return float(special.stdtr(self.df, max(self._t(margin), -self._t(-margin))))

    def _t(self, null: float) -> float:
        distance = self.estimate - null
        return distance / self.se if self.se > 0 else math.copysign(math.inf, distance) if distance else 0.0


def clustered_mean(values_SN: ArrayLike, *, alpha: float = 0.05) -> ClusteredMean:
    """The mean of values that two crossed clusters share, with an interval of coverage 1 - alpha.

    values_SN: (S, N), models by prompts. The variance of the mean is that of clusters of models plus that of clusters of
    prompts, less that of single answers (Cameron, Gelbach and Miller 2011), and never below either; a t distribution of the
    smaller number of clusters less one. One model's interval is of other prompts alone.
    """
    values = np.asarray(values_SN, dtype=float)
    models, prompts = values.shape
    residual = values - values.mean()
    by_model = _of_mean(residual.mean(1)) if models > 1 else 0.0
    by_prompt = _of_mean(residual.mean(0)) if prompts > 1 else 0.0
    single = float((residual**2).sum()) / (values.size * max(1, values.size - 1))
    both = by_model + by_prompt - single if models > 1 and prompts > 1 else 0.0
    se, df = math.sqrt(max(by_model, by_prompt, both)), (min(models, prompts) if models > 1 else prompts) - 1
    reach = float(-special.stdtrit(df, alpha / 2)) * se
    estimate = float(values.mean())
    return ClusteredMean(estimate, estimate - reach, estimate + reach, se, df)


def _of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values)


def mcnemar(difference_SN: ArrayLike) -> float:
    """The p-value that two ways are as often right on these models, prompts being clusters (Durkalski et al. 2003).

    difference_SN: (S, N) right or not of one less the other. With one model it is McNemar's test (1947) as the sum over
    discordant pairs.
    """
    by_prompt = np.asarray(difference_SN, dtype=float).sum(0)
    spread = float((by_prompt**2).sum())
    return float(special.chdtrc(1, by_prompt.sum() ** 2 / spread)) if spread else 1.0


def cochran(right_SNW: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """The p-value that all ways are as often right on these models (Cochran's Q, 1950), prompts being clusters.

    right_SNW: (S, N, W). Q is compared with its values when each prompt's ways change places, in all models alike: exact
    whatever the models' answers to one prompt have in common.
    """
    by_prompt = np.asarray(right_SNW, dtype=float).sum(0)  # (N, W)
    rng = np.random.default_rng(seed)
    # Q grows with the spread of the ways' totals alone: what else is in it is the same in every permutation.
    found, above = _spread(by_prompt), 1
    for _ in range(permutations):
        above += _spread(rng.permuted(by_prompt, axis=1)) >= found - 1e-9
    return above / (permutations + 1)


def _spread(by_prompt_NW: np.ndarray) -> float:
    return float(by_prompt_NW.sum(0).var())
