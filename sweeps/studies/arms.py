"""The arms of a design: which settings they have and how they are called."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping

from core.config.loading import text
from core.config.model import TOLD_TIMESTEP
from core.errors import UserError
from sweeps.studies.ablation import Ablation, Arm, Factor, Level
from sweeps.studies.checks import check_arms, check_factors

LONGEST_NAME = 120  # a file name holds 255 bytes, and other names are built around this one


def expand(ablation: Ablation) -> tuple[Arm, ...]:
    """The arms of a declaration, the control first.

    Without factors it is one arm, of models that are decoded in several ways. Raises UserError when the control, or an
    arm that is listed, isn't one of the combinations of levels.
    """
    if ablation.decoders and not ablation.factors:
        return (Arm(name="trained", label="trained", settings={}),)
    check_factors(ablation.factors, ablation.control)
    check_arms(ablation)
    control = {factor.key: ablation.control[factor.key] for factor in ablation.factors}
    others = (settings for settings in _combinations(ablation) if settings != control)
    short = _short_keys(ablation.factors)
    arms, taken = [], set[str]()
    for settings in (control, *others):
        name = _unique(",".join(f"{short[key]}={text(level)}" for key, level in settings.items()), taken)
        said = (factor for factor in ablation.factors if _matters(factor.key, settings))
        label = ", ".join(f"{factor.name} {text(settings[factor.key])}" for factor in said)
        arms.append(Arm(name=name, label=label, settings=settings))
    return tuple(arms)


def contrasted(ablation: Ablation, arms: tuple[Arm, ...]) -> list[list[str]]:
    """The names of the two arms of every planned contrast.

    Raises UserError for a contrast that isn't a pair of settings of two different arms of the design.
    """
    found = []
    for pair in ablation.contrasts:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(side, Mapping) for side in pair):
            raise UserError(
                f"contrasts: {pair!r} isn't a pair of settings, such as ({{'model.top_k': 4}}, {{'model.top_k': 1}})"
            )
        names = [_named({**ablation.control, **side}, arms) for side in pair]
        if names[0] == names[1]:
            raise UserError(f"contrasts: {names[0]} is compared with itself")
        if arms[0].name in names:
            raise UserError(f"contrasts: {names[0]} and {names[1]}: every arm is compared with the control already")
        found.append(names)
    return found


def _named(settings: Mapping[str, Level], arms: tuple[Arm, ...]) -> str:
    for arm in arms:
        if dict(arm.settings) == dict(settings):
            return arm.name
    told = ", ".join(f"{key}={text(level)}" for key, level in settings.items())
    raise UserError(f"contrasts: {told} is no arm of this design; its arms are {', '.join(arm.name for arm in arms)}")


def _matters(key: str, settings: Mapping[str, Level]) -> bool:
    """Whether a level says anything of an arm: what a router that is told nothing would see doesn't."""
    return key != "model.router.sees" or settings.get("model.router.kind", TOLD_TIMESTEP[0]) in TOLD_TIMESTEP


def _combinations(ablation: Ablation) -> Iterator[dict[str, Level]]:
    if isinstance(ablation.arms, tuple):
        control = {factor.key: ablation.control[factor.key] for factor in ablation.factors}
        yield from ({**control, **arm} for arm in ablation.arms)
        return
    for levels in itertools.product(*(factor.levels for factor in ablation.factors)):
        settings = {factor.key: level for factor, level in zip(ablation.factors, levels, strict=True)}
        changed = sum(settings[key] != ablation.control[key] for key in settings)
        if ablation.arms == "all" or changed <= 1:
            yield settings


def _short_keys(factors: tuple[Factor, ...]) -> dict[str, str]:
    """Each factor's key, cut to as many of its last parts as tell it from the others."""
    keys = [factor.key for factor in factors]
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        short[key] = next(
            ending for ending in endings if sum(other == ending or other.endswith(f".{ending}") for other in keys) == 1
        )
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
