"""Checks of a declared search: mistakes are refused before anything is trained."""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from core.config.loading import text
from core.config.run import known_keys
from core.errors import UserError
from core.registry import nearest
from sweeps.search.feasible import Resolver
from sweeps.search.rungs import rungs_of
from sweeps.search.samplers import PRUNERS, SAMPLERS
from sweeps.search.space import ordered
from sweeps.search.spec import Choice, Int, Log, Parameter, Search, Uniform
from sweeps.studies.matching import SOLVED
from sweeps.studies.study import (
    CONFIRMATION_SEED,
    MOST_SEEDS,
    check_decides,
    check_each_seed,
    check_metrics,
    check_settings,
)

TOKEN_KEYS = ("trainer.steps", "trainer.batch_size", "data.sequence_length")


def check(search: Search, overrides: Mapping[str, Any]) -> None:
    """Refuse a search, with the command line's overrides, that can't be planned.

    Raises UserError that names the field, and the nearest known names where one is unknown.
    """
    _check_space(search, overrides)
    _check_choices(search)
    _check_seeds(search)
    check_decides(search.alpha, search.power, search.margin)
    for key, parameter in search.space.items():
        _check_range(key, parameter)
        _check_type(key, parameter)
    ordered(search.space)
    _check_compare(search)
    resolver = Resolver(search, overrides)
    _check_control(search, resolver)
    _check_pruner(search, resolver)


def _check_space(search: Search, overrides: Mapping[str, Any]) -> None:
    if not search.space:
        raise UserError("space: it is empty; name at least one config key and its range, such as Log(1e-4, 1e-1)")
    for key, parameter in search.space.items():
        if key == "seed":
            raise UserError(
                "space: 'seed' can't be searched: the best seed is luck; list under `seeds` those to train in each "
                "configuration"
            )
        if key in ("data.corpus", "data.tokenizer", "data.held_out_share"):
            raise UserError(f"space: '{key}' can't be searched: losses on different data say nothing about each other")
        if key not in known_keys():
            raise UserError(f"space: unknown config key '{key}': {nearest(key, known_keys())}")
        for parent, levels in parameter.when.items():
            if parent not in search.space:
                raise UserError(
                    f"space: '{key}' depends on '{parent}', which isn't searched: {nearest(parent, search.space)}"
                )
            if not isinstance(levels, tuple | list) or not levels:
                raise UserError(f"space: `when` of '{key}' must list values of '{parent}', such as ('topk',)")
            for level in levels:
                if not search.space[parent].holds(level):
                    raise UserError(f"space: '{key}' waits for {parent}={text(level)}, which the space never has")
    searched = dict.fromkeys(search.space, "it is searched, so the space sets it")
    check_settings(search.settings, overrides, searched | {"seed": "the search's `seeds` set it"})
    if search.match not in (None, "active_flops"):
        raise UserError(f"match: unknown value {search.match!r}; use None or 'active_flops'")
    if search.match and SOLVED in search.space:
        raise UserError(f"space: '{SOLVED}' can't be searched under match='{search.match}', which solves it")


def _check_range(key: str, parameter: Parameter) -> None:
    if isinstance(parameter, Choice):
        if not isinstance(parameter.levels, tuple | list) or len(parameter.levels) < 2:
            raise UserError(
                f"space: '{key}' needs a tuple of at least two levels to choose from, not {parameter.levels!r}"
            )
        if len(set(map(repr, parameter.levels))) < len(parameter.levels):
            raise UserError(f"space: '{key}' lists a level twice")
        return
    for bound in (parameter.low, parameter.high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) < float("inf"):
            raise UserError(f"space: the bounds of '{key}' must be finite numbers, not {bound!r}")
    low, high = parameter.low, parameter.high
    if low >= high:
        raise UserError(f"space: '{key}' has low={low:g} >= high={high:g}; low must be smaller")
    if (isinstance(parameter, Log) or (isinstance(parameter, Int) and parameter.log)) and low <= 0:
        hint = (
            "; for 0 as a choice beside the range write Log(low, high, zero=True)" if isinstance(parameter, Log) else ""
        )
        raise UserError(f"space: '{key}' is logarithmic, so low={low:g} must be positive{hint}")
    if isinstance(parameter, Int):
        if not all(isinstance(bound, int) for bound in (low, high)):
            raise UserError(f"space: '{key}' is Int, so its bounds must be whole numbers, not {low!r} and {high!r}")
        if (
            parameter.step < 1
            or (parameter.log and parameter.step != 1)
            or (parameter.high - parameter.low) % parameter.step
        ):
            raise UserError(f"space: '{key}': step={parameter.step} must divide high - low (and be 1 with log=True)")


def _check_type(key: str, parameter: Parameter) -> None:
    kind = known_keys()[key]
    allowed = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        levels = parameter.levels if isinstance(parameter, Choice) else (None,)
        if wrong := [level for level in levels if level not in allowed]:
            said = (
                f"has no value {text(wrong[0])}" if isinstance(parameter, Choice) else "is chosen by name: use Choice"
            )
            raise UserError(f"space: '{key}' {said}; it is one of {', '.join(map(str, allowed))}")
        return
    if isinstance(parameter, Log | Uniform) and float not in allowed:
        raise UserError(f"space: '{key}' is no decimal number: use Int or Choice")
    if isinstance(parameter, Int) and not {int, float} & set(allowed):
        raise UserError(f"space: '{key}' is no number: use Choice")
    if isinstance(parameter, Choice):
        for level in parameter.levels:
            fits = type(level) in allowed or (type(level) is int and float in allowed)
            if not fits:
                raise UserError(f"space: '{key}' can't be {level!r}: its type is {getattr(kind, '__name__', kind)}")


def _check_choices(search: Search) -> None:
    if search.sampler not in SAMPLERS:
        raise UserError(f"sampler: unknown '{search.sampler}': {nearest(search.sampler, SAMPLERS)}")
    if search.chosen_pruner not in PRUNERS:
        raise UserError(f"pruner: unknown '{search.pruner}': {nearest(str(search.pruner), PRUNERS)}")
    if len(search.metrics) > 1 and search.chosen_pruner != "none":
        raise UserError(
            f"pruner: '{search.pruner}' needs one objective to judge by, and metric names {len(search.metrics)}; leave it out"
        )
    if not search.metrics:
        raise UserError("metric: there is none; name at least one, such as 'val/nelbo'")
    check_metrics(search.metrics, search.secondary)
    if search.sampler == "cma_es":
        numeric = [
            key for key, parameter in search.space.items() if not isinstance(parameter, Choice) and not parameter.when
        ]
        if len(search.metrics) > 1:
            raise UserError("sampler: 'cma_es' searches one objective; use nsga2 or tpe for several")
        if len(numeric) < 2:
            raise UserError("sampler: 'cma_es' needs two or more unconditional number ranges in the space; use tpe")
        if importlib.util.find_spec("cmaes") is None:
            raise UserError("sampler: 'cma_es' needs the package cmaes: pip install cmaes")


def _check_seeds(search: Search) -> None:
    check_each_seed(search.seeds)
    if search.confirm < 2:
        raise UserError(f"confirm: at least 2 fresh seeds are needed for an interval, not {search.confirm}")
    if search.confirm > MOST_SEEDS:
        raise UserError(f"confirm: {search.confirm} seeds are more than a sweep can have: at most {MOST_SEEDS}")
    if not 0 <= search.seed < 2**32:
        raise UserError(f"seed: {search.seed} is not a whole number from 0 on, below 2**32, which samplers take")
    fresh = range(CONFIRMATION_SEED, CONFIRMATION_SEED + search.confirm)
    if taken := [seed for seed in search.seeds if seed in fresh]:
        raise UserError(
            f"seeds: {taken[0]} is kept for the confirmation ({fresh.start} to {fresh.stop - 1}); use others"
        )


def _check_compare(search: Search) -> None:
    key = search.compare
    if key is None:
        return
    if key not in search.space:
        raise UserError(f"compare: '{key}' isn't in the space: {nearest(key, search.space)}")
    parameter = search.space[key]
    if not isinstance(parameter, Choice) or parameter.when:
        raise UserError(f"compare: '{key}' must be an unconditional Choice: each of its levels is tuned by itself")


def _check_control(search: Search, resolver: Resolver) -> None:
    for key in search.control:
        if key not in search.space:
            raise UserError(f"control: '{key}' isn't in the space: {nearest(key, search.space)}")
    for key, value in resolver.control_settings.items():
        if not search.space[key].holds(value):
            whose = "control" if key in search.control else f"control: the base config's default ('{search.base}')"
            raise UserError(f"{whose} {key}={text(value)} is outside the space; widen its range or set it in `control`")
    for key in search.control:
        if key not in resolver.control_settings:
            raise UserError(
                f"control: '{key}' doesn't exist beside the control's other values (see its `when`); leave it out"
            )
    resolved = resolver.resolve(resolver.control_settings)
    if resolved.config is None:
        raise UserError(f"control: it breaks the search's own limits: {resolved.reason}")


def _check_pruner(search: Search, resolver: Resolver) -> None:
    pruner = search.chosen_pruner
    if pruner == "wilcoxon" and len(search.seeds) < 3:
        raise UserError(
            f"pruner: 'wilcoxon' compares configurations over seeds, and {len(search.seeds)} can't show a difference; list "
            "at least 3 seeds, or use asha"
        )
    if pruner not in ("asha", "hyperband"):
        return
    for key in TOKEN_KEYS:
        if key in search.space:
            raise UserError(
                f"pruner: '{pruner}' compares runs at equal tokens, and the space varies {key}; use pruner='none'"
            )
    trainer = resolver.base.trainer
    if trainer.strategy != "single":
        raise UserError(
            f"pruner: '{pruner}' pauses runs, which trainer.strategy={trainer.strategy} can't; use pruner='none'"
        )
    if search.pruner and len(rungs_of(trainer.steps, trainer.validate_every)) < 2:
        raise UserError(
            f"pruner: '{pruner}' judges by validations on the way, and trainer.validate_every={trainer.validate_every} "
            f"makes none before step {trainer.steps}; set it to {max(1, trainer.steps // 9)}"
        )
