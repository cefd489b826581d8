"""The searched space for Optuna: distributions, draws, and settings from and to its parameters."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from core.errors import UserError
from sweeps.search.spec import Choice, Int, Log, Parameter, Search
from sweeps.studies.study import Level

ZERO = " = 0"  # after a key: the parameter that says whether it is 0 rather than in its range


def distributions(key: str, parameter: Parameter) -> dict[str, BaseDistribution]:
    """Optuna's parameters for one key: two where 0 is a choice beside a logarithmic range."""
    if isinstance(parameter, Choice):
        return {key: CategoricalDistribution(parameter.levels)}
    if isinstance(parameter, Int):
        return {key: IntDistribution(parameter.low, parameter.high, step=parameter.step, log=parameter.log)}
    found: dict[str, BaseDistribution] = {
        key: FloatDistribution(parameter.low, parameter.high, log=isinstance(parameter, Log))
    }
    if isinstance(parameter, Log) and parameter.zero:
        found[f"{key}{ZERO}"] = CategoricalDistribution((False, True))
    return found


def ordered(space: Mapping[str, Parameter]) -> list[str]:
    """The keys, each after those that it depends on. Raises UserError for conditions that go round in a circle."""
    keys: list[str] = []
    while len(keys) < len(space):
        ready = [key for key in space if key not in keys and all(parent in keys for parent in space[key].when)]
        if not ready:
            circle = [key for key in space if key not in keys]
            raise UserError(
                f"space: the conditions of {', '.join(circle)} depend on each other; `when` must end somewhere"
            )
        keys += ready
    return keys


def applies(parameter: Parameter, settings: Mapping[str, Level]) -> bool:
    """True if a parameter exists beside these settings."""
    return all(key in settings and settings[key] in levels for key, levels in parameter.when.items())


def draw(trial: Trial, search: Search, fixed: Mapping[str, Level]) -> dict[str, Level]:
    """One configuration, as the trial's sampler proposes it. fixed: keys that aren't drawn."""
    settings: dict[str, Level] = {}
    for key in ordered(search.space):
        parameter = search.space[key]
        if key in fixed:
            settings[key] = fixed[key]
        elif applies(parameter, settings):
            settings[key] = _suggest(trial, key, parameter)
    return settings


def _suggest(trial: Trial, key: str, parameter: Parameter) -> Level:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(key, parameter.levels)
    if isinstance(parameter, Int):
        return trial.suggest_int(key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    if isinstance(parameter, Log) and parameter.zero and trial.suggest_categorical(f"{key}{ZERO}", (False, True)):
        return 0.0
    return trial.suggest_float(key, parameter.low, parameter.high, log=isinstance(parameter, Log))


def parameters(settings: Mapping[str, Level], search: Search) -> dict[str, Any]:
    """Optuna's parameters whose draw gives these settings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        parameter = search.space[key]
        if isinstance(parameter, Log) and parameter.zero:
            found[f"{key}{ZERO}"] = value == 0
        if not (isinstance(parameter, Log) and value == 0):
            found[key] = value
    return found
