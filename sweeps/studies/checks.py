"""Mistakes in a declaration, refused before anything is trained."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from core.config.loading import flatten, text
from core.config.run import known_keys
from core.errors import UserError
from core.records.metrics import METRICS
from core.runtime.json_files import is_whole
from core.runtime.units import counted
from sweeps.studies.ablation import Ablation, Factor, Level
from sweeps.studies.matching import SOLVED


def check(ablation: Ablation, overrides: Mapping[str, Any]) -> None:
    """Refuse a declaration, with the command line's overrides, that can't be planned.

    Raises UserError that names the field, and the nearest known names where one is unknown.
    """
    keys = [factor.key for factor in ablation.factors]
    for key in keys:
        if key == "seed":
            raise UserError("factors: 'seed' is no factor; list the seeds under `seeds`")
        if key not in known_keys():
            raise UserError(f"factors: unknown config key '{key}': {nearest(key, known_keys())}")
    if (
        not ablation.ladder and not ablation.recipes and (ablation.factors or not ablation.decoders)
    ):  # a ladder names its points otherwise
        check_factors(ablation.factors, ablation.control)
    for source, settings in (("settings", dict(flatten(ablation.settings))), ("override", overrides)):
        for key in settings:
            if key in keys:
                raise UserError(f"{source} {key}: it is a factor of this ablation, so its levels set it; leave it out")
            if key == "seed":
                raise UserError(f"{source} seed: the ablation's `seeds` set it; leave it out")
    if ablation.match and SOLVED in keys:
        raise UserError(f"factors: '{SOLVED}' can't be varied under match='{ablation.match}', which solves it")
    _check_metrics(ablation)
    _check_seeds(ablation)
    check_decides(ablation.alpha, ablation.power, ablation.margin)


def check_decides(alpha: float, power: float, margin: float | None) -> None:
    """Refuse numbers that no verdict can be made by."""
    for field, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise UserError(f"{field} must lie in (0, 1), not {value}")
    if margin is not None and not margin > 0:
        raise UserError(f"margin must be positive, not {margin}; None means that equivalence isn't claimed")


def edition_of(name: str, ablation: Ablation, size: str) -> Ablation:
    """The edition of that size; a factor that it drops is a setting. Raises UserError for a size that isn't declared."""
    try:
        edition = ablation.sized(size)
    except KeyError:
        known = ["full", *ablation.sizes]
        raise UserError(f"unknown size '{size}' of '{name}': {nearest(size, known)}") from None
    # A factor that an edition drops stays at its control level.
    dropped = {factor.key for factor in ablation.factors} - {factor.key for factor in edition.factors}
    held = {key: level for key, level in edition.control.items() if key in dropped}
    control = {key: level for key, level in edition.control.items() if key not in dropped}
    return replace(edition, control=control, settings={**held, **edition.settings})


def check_factors(factors: tuple[Factor, ...], control: Mapping[str, Level]) -> None:
    """Refuse factors that don't make a design: none, one named twice, levels that repeat, a control outside of them."""
    if not factors:
        raise UserError("factors: an ablation varies at least one config key; name one with two or more levels")
    for key, times in Counter(factor.key for factor in factors).items():
        if times > 1:
            raise UserError(f"factors: '{key}' is listed {times} times; list it once with all its levels")
    for factor in factors:
        _check_levels(factor)
        for level in (*factor.levels, control.get(factor.key)):
            check_level("factors", factor.key, level)
        if factor.key not in control:
            raise UserError(f"control: no level for the factor '{factor.key}'; use one of {_listing(factor)}")
        if control[factor.key] not in factor.levels:
            raise UserError(
                f"control: {factor.key}={text(control[factor.key])} is not among the factor's levels; "
                f"use one of {_listing(factor)}"
            )
    for key in control:
        if key not in {factor.key for factor in factors}:
            raise UserError(f"control: '{key}' is not a factor; the factors are {', '.join(f.key for f in factors)}")


def check_arms(ablation: Ablation) -> None:
    """Refuse listed arms that name what is no factor, or a level that its factor doesn't have, or that come twice."""
    if isinstance(ablation.arms, str):
        return
    levels = {factor.key: factor for factor in ablation.factors}
    seen: list[dict[str, Level]] = [dict(ablation.control)]
    for arm in ablation.arms:
        for key, level in arm.items():
            if key not in levels:
                raise UserError(f"arms: '{key}' is not a factor: {nearest(key, levels)}")
            if level not in levels[key].levels:
                raise UserError(
                    f"arms: {key}={text(level)} is not among the factor's levels; use one of {_listing(levels[key])}"
                )
        if {**ablation.control, **arm} in seen:
            raise UserError(
                f"arms: {', '.join(f'{k}={text(v)}' for k, v in arm.items())} is the control or listed twice"
            )
        seen.append({**ablation.control, **arm})


def _check_levels(factor: Factor) -> None:
    if len(factor.levels) < 2:
        raise UserError(
            f"factors: '{factor.key}' has {counted(len(factor.levels), 'level')}; a factor needs at least two"
        )
    for index, level in enumerate(factor.levels):
        if level in factor.levels[:index]:
            raise UserError(f"factors: '{factor.key}' lists the level {text(level)} twice; list every level once")


def check_level(field: str, key: str, level: object) -> None:
    """Refuse a level that is text where its config key takes numbers: '2' and 2 would be two arms, and trained as one."""
    kind = known_keys().get(key)
    if isinstance(level, str) and {int, float} & {kind, *get_args(kind)}:
        raise UserError(
            f"{field}: '{key}' takes numbers, not the text {level!r}: leave out its quotes (the number is the same config)"
        )


def _listing(factor: Factor) -> str:
    return ", ".join(map(text, factor.levels))


def _check_metrics(ablation: Ablation) -> None:
    for field, metric in (("metric", ablation.metric), *(("secondary", name) for name in ablation.secondary)):
        if metric not in METRICS:
            raise UserError(f"{field}: unknown metric '{metric}': {nearest(metric, METRICS)}")
    for metric in ablation.secondary:
        if metric == ablation.metric or ablation.secondary.count(metric) > 1:
            raise UserError(f"secondary: '{metric}' is judged already; list every metric once")


def _check_seeds(ablation: Ablation) -> None:
    seeds = list(ablation.seeds)
    if not seeds:
        raise UserError("seeds: there are none; list at least one, such as range(5)")
    for seed in seeds:
        if not is_whole(seed) or seed < 0:
            raise UserError(f"seeds: {seed!r} is not a whole number from 0 on, below 2**63")
        if seeds.count(seed) > 1:
            raise UserError(f"seeds: {seed} is listed twice; the same seed gives the same run, not another sample")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known names that look most like this one, or all of them."""
    known = list(known)
    parts = {entry.rsplit(sep, 1)[-1]: entry for sep in ("/", ".") for entry in known}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near = near or [parts[part] for part in difflib.get_close_matches(name.rsplit(".", 1)[-1], parts, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
