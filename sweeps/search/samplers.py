"""Registry of Optuna's samplers, and the view of the storage that they are given."""

import hashlib
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.spec import Search

PRUNERS = ("asha", "hyperband", "wilcoxon", "none")
RETRIES = "retries"  # of a trial: the number of the failed one whose place it takes


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


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of each configuration that got, or will get, training, the trial that counts: the last."""
    admitted = sorted((trial for trial in trials if "arm" in trial.user_attrs), key=lambda trial: trial.number)
    return list({trial.user_attrs["arm"]: trial for trial in admitted}.values())


def sampler_for(search: Search, group: str, number: int) -> BaseSampler:
    """The sampler that proposes a study's trial of that number.

    Its randomness depends on the search's seed, the group and the number alone, so a search that was cut off draws what
    it would have drawn.
    """
    digest = hashlib.sha256(f"{search.seed}/{group}/{number}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[search.sampler](search, int.from_bytes(digest[:4], "little"))


class SamplerView:
    """The storage as samplers are to see it.

    A paused configuration counts as pruned with the values that it has, and a failed one as pruned without, unless it
    was tried again: samplers ignore WAITING and FAIL, and would go on proposing what diverges.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, with their states as samplers are to see them."""
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy)
        replaced = {trial.user_attrs.get(RETRIES) for trial in trials}
        shown = [trial if trial.number in replaced else _shown(trial) for trial in trials]
        return [trial for trial in shown if states is None or trial.state in states]


def _shown(trial: FrozenTrial) -> FrozenTrial:
    if trial.state not in (TrialState.WAITING, TrialState.FAIL):
        return trial
    failed = trial.state == TrialState.FAIL
    return FrozenTrial(
        number=trial.number,
        state=TrialState.PRUNED,
        value=None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs={} if failed else trial.system_attrs,
        intermediate_values={} if failed else trial.intermediate_values,
        trial_id=trial._trial_id,
    )
