"""Factors: config keys that an ablation varies, and the arms that their levels make."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from core.config.field_types import check_fields
from core.config.loading import build, text
from core.config.model import ROUTERS
from core.config.run import RunConfig, known_keys
from core.errors import UserError
from core.model.flops import flops_per_token
from core.records.designs import DesignArm, DesignFactor
from core.registry import nearest
from core.runtime.printable import one_line
from core.runtime.units import counted
from sweeps.studies.arms import Arm, ArmSource, ResolvedArm, Shared, comparison_notes
from sweeps.studies.matching import SOLVED, match_flops
from sweeps.studies.study import Level

LONGEST_NAME = 120  # a file name holds 255 bytes, and other names are built around this one
UNEQUAL = 0.01  # FLOPs per token that differ by more are noted beside the verdict

Listed = Literal["all", "one_at_a_time"] | tuple[Mapping[str, Level], ...]
Contrasts = tuple[tuple[Mapping[str, Level], Mapping[str, Level]], ...]


@dataclass(frozen=True)
class Factor:
    """One thing that is varied: a config key and the levels that it takes."""

    key: str
    levels: tuple[Level, ...]
    label: str = ""  # how reports call it; the key's last part when left out

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple | list):
            raise UserError(f"factors: the levels of '{self.key}' must be a tuple, such as (1, 2), not {self.levels!r}")
        check_fields(self, f"factors: {one_line(repr(self.key))}: ")

    @property
    def name(self) -> str:
        return self.label or self.key.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Factorial(ArmSource):
    """Combinations of factors' levels as arms.

    The fields are an Ablation's. Without varied factors the only arm is "trained", where `may_be_single`: of models that are
    decoded in several ways.
    """

    varied: tuple[Factor, ...]
    control: Mapping[str, Level]
    listed: Listed = "all"
    pairs: Contrasts = ()
    match: str | None = None
    may_be_single: bool = False

    def check(self, shared: Shared) -> None:
        keys = [factor.key for factor in self.varied]
        for key in keys:
            if key == "seed":
                raise UserError("factors: 'seed' is no factor; list the seeds under `seeds`")
            if key not in known_keys():
                raise UserError(f"factors: unknown config key '{key}': {nearest(key, known_keys())}")
        if self.varied or not self.may_be_single:
            self._check_levels()
        reason = "it is a factor of this ablation, so its levels set it"
        shared.refuse(dict.fromkeys(keys, reason))
        if self.match and SOLVED in keys:
            raise UserError(f"factors: '{SOLVED}' can't be varied under match='{self.match}', which solves it")

    def expand(self) -> tuple[Arm, ...]:
        """The arms, the control first.

        Raises UserError when the control, or an arm that is listed, isn't one of the combinations of levels.
        """
        if self.may_be_single and not self.varied:
            return (Arm(name="trained", label="trained", settings={}),)
        self._check_levels()
        self._check_listed()
        control = {factor.key: self.control[factor.key] for factor in self.varied}
        others = (settings for settings in self._combinations(control) if settings != control)
        short = _short_keys([factor.key for factor in self.varied])
        arms, taken = [], set[str]()
        for settings in (control, *others):
            name = _unique(",".join(f"{short[key]}={text(level)}" for key, level in settings.items()), taken)
            shown = (factor for factor in self.varied if _matters(factor.key, settings))
            label = ", ".join(f"{factor.name} {text(settings[factor.key])}" for factor in shown)
            arms.append(Arm(name=name, label=label, settings=settings))
        return tuple(arms)

    def resolve(self, shared: Shared) -> list[ResolvedArm]:
        arms = self.expand()
        configs = {arm.name: _config(arm, shared.layers) for arm in arms}
        matched = match_flops(configs) if self.match == "active_flops" else list(configs.values())
        return [ResolvedArm(arm, config) for arm, config in zip(arms, matched, strict=True)]

    def summary(self) -> dict[str, Any]:
        return {"arms": len(self.expand())}

    def alone(self, control: DesignArm, arm: DesignArm) -> dict[str, Any]:
        differs = {key: value for key, value in arm.settings.items() if control.settings.get(key) != value}
        return {"arms": (differs,), "contrasts": ()}

    def factors(self, arms: Sequence[ResolvedArm]) -> tuple[DesignFactor, ...]:
        return tuple(DesignFactor(factor.key, factor.name, tuple(factor.levels)) for factor in self.varied)

    def contrasts(self, arms: Sequence[ResolvedArm]) -> tuple[tuple[str, str], ...]:
        """Raises UserError for a contrast that isn't a pair of settings of two different arms of the design."""
        named = []
        for pair in self.pairs:
            sides = pair if isinstance(pair, tuple | list) else ()
            if len(sides) != 2 or not all(isinstance(side, Mapping) for side in sides):
                raise UserError(
                    f"contrasts: {pair!r} isn't a pair of settings, such as ({{'model.top_k': 4}}, {{'model.top_k': 1}})"
                )
            first, second = (_named({**self.control, **side}, [each.arm for each in arms]) for side in sides)
            if first == second:
                raise UserError(f"contrasts: {first} is compared with itself")
            if arms[0].arm.name in (first, second):
                raise UserError(f"contrasts: {first} and {second}: every arm is compared with the control already")
            named.append((first, second))
        return tuple(named)

    def notes(self, arm: ResolvedArm, control: ResolvedArm, metrics: Sequence[str]) -> list[str]:
        share = flops_per_token(arm.config) / flops_per_token(control.config) - 1
        notes = []
        if self.match == "active_flops" and abs(share) > 1e-4:
            notes.append(f"{share:+.2%} FLOPs per token: no expert width comes nearer to the control's")
        elif self.match is None and abs(share) > UNEQUAL:
            notes.append(f"{share:+.0%} FLOPs per token beside the control's: not a comparison at equal compute")
        return notes + comparison_notes(arm.config, control.config, metrics)

    def _combinations(self, control: Mapping[str, Level]) -> Iterator[dict[str, Level]]:
        if isinstance(self.listed, tuple):
            yield from ({**control, **arm} for arm in self.listed)
            return
        for levels in itertools.product(*(factor.levels for factor in self.varied)):
            settings = {factor.key: level for factor, level in zip(self.varied, levels, strict=True)}
            changed = sum(settings[key] != control[key] for key in settings)
            if self.listed == "all" or changed <= 1:
                yield settings

    def _check_levels(self) -> None:
        if not self.varied:
            raise UserError("factors: an ablation varies at least one config key; name one with two or more levels")
        keys = [factor.key for factor in self.varied]
        for key, times in Counter(keys).items():
            if times > 1:
                raise UserError(f"factors: '{key}' is listed {times} times; list it once with all its levels")
        for factor in self.varied:
            _check_levels(factor, self.control.get(factor.key))
            if factor.key not in self.control:
                raise UserError(f"control: no level for the factor '{factor.key}'; use one of {_listing(factor)}")
            if self.control[factor.key] not in factor.levels:
                raise UserError(
                    f"control: {factor.key}={text(self.control[factor.key])} is not among the factor's levels; "
                    f"use one of {_listing(factor)}"
                )
        for key in self.control:
            if key not in keys:
                raise UserError(f"control: '{key}' is not a factor; the factors are {', '.join(keys)}")

    def _check_listed(self) -> None:
        if isinstance(self.listed, str):
            return
        levels = {factor.key: factor for factor in self.varied}
        seen: list[dict[str, Level]] = [dict(self.control)]
        for arm in self.listed:
            for key, level in arm.items():
                if key not in levels:
                    raise UserError(f"arms: '{key}' is not a factor: {nearest(key, levels)}")
                if level not in levels[key].levels:
                    raise UserError(
                        f"arms: {key}={text(level)} is not among the factor's levels; use one of {_listing(levels[key])}"
                    )
            if {**self.control, **arm} in seen:
                raise UserError(
                    f"arms: {', '.join(f'{k}={text(v)}' for k, v in arm.items())} is the control or listed twice"
                )
            seen.append({**self.control, **arm})


def check_listed(arms: object) -> None:
    """Refuse a value of `arms` that is neither a rule nor a tuple of settings."""
    if arms in ("all", "one_at_a_time"):
        return
    if not isinstance(arms, tuple) or not arms or not all(isinstance(arm, Mapping) and arm for arm in arms):
        raise UserError(
            f"arms: unknown value {arms!r}; use 'all', 'one_at_a_time', or a tuple of settings, such as "
            "({'model.top_k': 4},)"
        )


def _check_levels(factor: Factor, control: Level) -> None:
    """Refuse levels that are too few or repeat, and text where numbers are needed: '2' and 2 would be trained as one arm."""
    if len(factor.levels) < 2:
        raise UserError(
            f"factors: '{factor.key}' has {counted(len(factor.levels), 'level')}; a factor needs at least two"
        )
    for index, level in enumerate(factor.levels):
        if level in factor.levels[:index]:
            raise UserError(f"factors: '{factor.key}' lists the level {text(level)} twice; list every level once")
    kind = known_keys().get(factor.key)
    for level in (*factor.levels, control):
        if isinstance(level, str) and {int, float} & {kind, *get_args(kind)}:
            raise UserError(
                f"factors: '{factor.key}' takes numbers, not the text {level!r}: leave out its quotes (the number is the "
                "same config)"
            )


def _listing(factor: Factor) -> str:
    return ", ".join(map(text, factor.levels))


def _config(arm: Arm, layers: Sequence[Mapping[str, Any]]) -> RunConfig:
    try:
        return build(*layers, arm.settings)
    except UserError as error:
        try:
            build(*layers)
        except UserError as without:
            if str(without) == str(error):  # not the levels' fault
                raise error from None
        raise UserError(f"arm {arm.name}: {error}") from None


def _named(settings: Mapping[str, Level], arms: Sequence[Arm]) -> str:
    for arm in arms:
        if dict(arm.settings) == dict(settings):
            return arm.name
    told = ", ".join(f"{key}={text(level)}" for key, level in settings.items())
    raise UserError(f"contrasts: {told} is no arm of this design; its arms are {', '.join(arm.name for arm in arms)}")


def _matters(key: str, settings: Mapping[str, Level]) -> bool:
    """True if a level says anything of an arm: what a router that is told nothing would see doesn't."""
    kind = settings.get("model.router.kind")
    return key != "model.router.sees" or kind is None or (kind in ROUTERS and ROUTERS[str(kind)].sees_timestep)


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each factor's key, cut to as many of its last parts as tell it from the others."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = (f".{'.'.join(parts[-n:])}" for n in range(1, len(parts) + 1))
        short[key] = next(one[1:] for one in endings if sum(f".{other}".endswith(one) for other in keys) == 1)
    return short


def _unique(name: str, taken: set[str]) -> str:
    """Fit for a file name on any system, and unlike the names before it."""
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)
    if len(safe) > LONGEST_NAME:
        safe = f"{safe[: LONGEST_NAME - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    candidates = itertools.chain((safe,), (f"{safe}~{n}" for n in itertools.count(2)))
    # Some file systems ignore case.
    chosen = next(candidate for candidate in candidates if candidate.lower() not in taken)
    taken.add(chosen.lower())
    return chosen
