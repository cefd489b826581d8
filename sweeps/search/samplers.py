"""Optuna's samplers by the names that a search knows them by."""

import hashlib
import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

from sweeps.search.spec import Search

PRUNERS = ("asha", "hyperband", "wilcoxon", "none")


def _tpe(search: Search, seed: int) -> BaseSampler:
    conditional = any(parameter.when or getattr(parameter, "zero", False) for parameter in search.space.values())
    # Grouped: parameters that exist only at times would else be drawn as if they depended on nothing.
    return TPESampler(seed=seed, group=conditional and len(search.metrics) == 1)


def _cma_es(search: Search, seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _nsga2(search: Search, seed: int) -> BaseSampler:
    # Its default of 50 is most of a small budget.
    return NSGAIISampler(seed=seed, population_size=max(4, min(50, (search.budget.trials or 80) // 4)))


def _qmc(search: Search, seed: int) -> BaseSampler:
    # One scrambled Sobol sequence, which the study counts through.
    return QMCSampler(seed=search.seed, scramble=True, warn_independent_sampling=False)


def _random(search: Search, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[Search, int], BaseSampler]] = {
    "tpe": _tpe,
    "cma_es": _cma_es,
    "nsga2": _nsga2,
    "qmc": _qmc,
    "random": _random,
}


def sampler_for(search: Search, group: str, number: int) -> BaseSampler:
    """The sampler that proposes a study's trial of that number.

    Its randomness depends on the search's seed, the group and the number alone, so a search that was cut off draws what
    it would have drawn.
    """
    digest = hashlib.sha256(f"{search.seed}/{group}/{number}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[search.sampler](search, int.from_bytes(digest[:4], "little"))
