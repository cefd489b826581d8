"""Named recipes as arms: each with the steps at which its training, a first stage included, costs what the control's does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.config.loading import build, flatten
from core.config.presets import preset
from core.config.recipes import Recipe
from core.config.run import RunConfig, config_hash, get_field, to_dict
from core.errors import UserError
from core.model.flops import flops_per_token, training_flops
from core.records.fingerprints import STAGE
from core.training.checks import check_same_shape
from sweeps.studies.ablation import Ablation, Arm

TOLERANCE = 0.01  # of the control's FLOPs


@dataclass(frozen=True)
class Prepared:
    """An arm of a recipe: its config, and that of its first stage."""

    arm: Arm
    config: RunConfig
    first: RunConfig | None

    @property
    def flops(self) -> float:
        """Of its whole training."""
        return training_flops(self.config) + (training_flops(self.first) if self.first else 0.0)


def prepare(ablation: Ablation, overrides: Mapping[str, Any]) -> list[Prepared]:
    """The arms of a declaration's recipes, the first of them the control.

    overrides: the command line's settings. Raises UserError for those that a recipe sets itself, recipes that can't be
    built, first stages of another shape, and steps that miss the control's FLOPs by more than 1 %.
    """
    assert ablation.recipes
    own = {key for recipe in ablation.recipes.values() for key in (*recipe.settings, *(recipe.first or {}))}
    if taken := own & set(overrides):
        raise UserError(f"override {min(taken)}: a recipe sets it; leave it out")
    shared = (to_dict(preset(ablation.base)), ablation.settings, overrides)
    target, found = 0.0, list[tuple[str, RunConfig, RunConfig | None]]()
    for name, recipe in ablation.recipes.items():
        try:
            config, first = _staged(recipe, shared, target)
        except UserError as error:
            raise UserError(f"recipe '{name}': {error}") from None
        target = target or training_flops(config)
        found.append((name, config, first))
    flat = [dict(flatten(to_dict(config))) for _, config, _ in found]
    keys = [key for key, value in flat[0].items() if any(other[key] != value for other in flat)]
    arms = []
    for name, config, first in found:
        safe = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
        arm = Arm(name=safe, label=name, settings={key: get_field(config, key) for key in keys})
        arms.append(Prepared(arm, config, first))
    if len({each.arm.name.lower() for each in arms}) < len(arms):
        raise UserError("recipes: two names are the same to a file system: rename one")
    for each in arms:
        off = each.flops / target - 1
        if abs(off) > TOLERANCE:
            raise UserError(
                f"recipe '{each.arm.label}': whole numbers of steps are {off:+.1%} off the control's {target:.3g} training "
                "FLOPs: use more steps, or smaller batches"
            )
    return arms


def _staged(recipe: Recipe, shared: tuple[Mapping[str, Any], ...], target: float) -> tuple[RunConfig, RunConfig | None]:
    """The config and that of its first stage, with their steps; a target of 0 leaves them as they are."""
    if recipe.first is None:
        config = build(*shared, recipe.settings)
        return (_at(config, target) if target else config), None
    if not target:
        raise UserError("the control has a first stage: let it be one that starts from scratch")
    first = _at(build(*shared, recipe.first), recipe.first_share * target)
    start = f"{STAGE}{config_hash(first, with_seed=False)}"
    config = build(*shared, recipe.settings, {"trainer.initial_weights": start})
    check_same_shape(first.model, config.model)
    return _at(config, target - training_flops(first)), first


def _at(config: RunConfig, flops: float) -> RunConfig:
    steps = max(1, round(flops / flops_per_token(config) / config.tokens_per_step))
    return replace(config, trainer=replace(config.trainer, steps=steps))
