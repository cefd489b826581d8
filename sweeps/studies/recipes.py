"""Recipes as arms: each gets the steps at which its training, a first stage included, costs what the control's does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config.loading import build
from core.config.presets import Recipe
from core.config.run import RunConfig, config_hash, to_dict
from core.errors import UserError
from core.model.flops import flops_per_token, training_flops
from core.records.designs import DesignArm
from core.records.provenance import STAGE
from sweeps.studies.arms import Arm, ArmSource, ResolvedArm, Shared, comparison_notes, differences
from sweeps.studies.ladder import with_steps

TOLERANCE = 0.01  # of the control's FLOPs


@dataclass(frozen=True)
class RecipeArm(ResolvedArm):
    """The arm of a recipe."""

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return training_flops(self.config) + (training_flops(self.first) if self.first else 0.0)

    def details(self) -> dict[str, Any]:
        from core.data.inputs import fingerprint  # numpy, which mistakes in declarations are refused without

        first = self.first and {"first": to_dict(self.first), "first_data_fingerprint": fingerprint(self.first)}
        return {"flops": self.flops} | (first or {})


@dataclass(frozen=True)
class Recipes(ArmSource):
    """Recipes by name as arms, the first of them the control."""

    by_name: Mapping[str, Recipe]

    def __post_init__(self) -> None:
        if len(self.by_name) < 2:
            raise UserError("recipes: name at least two, the first of them the control")

    def check(self, shared: Shared) -> None:
        keys = {key for recipe in self.by_name.values() for key in (*recipe.settings, *(recipe.first or {}))}
        if taken := keys & set(shared.overrides):
            raise UserError(f"override {min(taken)}: a recipe sets it; leave it out")

    def resolve(self, shared: Shared) -> list[RecipeArm]:
        """Raises UserError for settings that a recipe sets itself, recipes that can't be built, first stages of another
        shape, and steps that miss the control's FLOPs by more than 1 %."""
        target, staged = 0.0, list[tuple[str, RunConfig, RunConfig | None]]()
        for name, recipe in self.by_name.items():
            try:
                config, first = _staged(recipe, shared.layers, target)
            except UserError as error:
                raise UserError(f"recipe '{name}': {error}") from None
            target = target or training_flops(config)
            staged.append((name, config, first))
        arms = []
        for (name, config, first), settings in zip(staged, differences([each[1] for each in staged]), strict=True):
            safe = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
            arms.append(RecipeArm(Arm(name=safe, label=name, settings=settings), config, first))
        if len({each.arm.name.lower() for each in arms}) < len(arms):
            raise UserError("recipes: two names are the same to a file system: rename one")
        for each in arms:
            off = each.flops / target - 1
            if abs(off) > TOLERANCE:
                raise UserError(
                    f"recipe '{each.arm.label}': whole numbers of steps are {off:+.1%} off the control's {target:.3g} "
                    "training FLOPs: use more steps, or smaller batches"
                )
        return arms

    def alone(self, control: DesignArm, arm: DesignArm) -> dict[str, Any]:
        kept = {control.label, arm.label}
        return {"recipes": {name: recipe for name, recipe in self.by_name.items() if name in kept}}

    def summary(self) -> dict[str, Any]:
        return {"arms": len(self.by_name)}

    def notes(self, arm: ResolvedArm, control: ResolvedArm, metrics: Sequence[str]) -> list[str]:
        notes = comparison_notes(arm.config, control.config, metrics)
        steps, first = arm.config.trainer.steps, arm.first
        if first is not None:
            notes.append(
                f"{first.trainer.steps} steps of a first stage ({first.objective.kind}), then {steps}, at equal training "
                "FLOPs"
            )
        elif steps != control.config.trainer.steps:
            notes.append(f"{steps} steps (the control: {control.config.trainer.steps}) at equal training FLOPs")
        return notes


def _staged(recipe: Recipe, layers: Sequence[Mapping[str, Any]], target: float) -> tuple[RunConfig, RunConfig | None]:
    """The config and that of its first stage, with their steps; a target of 0 leaves them as they are."""
    from core.training.checks import check_same_shape  # numpy, which mistakes in declarations are refused without

    if recipe.first is None:
        config = build(*layers, recipe.settings)
        return (_at(config, target) if target else config), None
    if not target:
        raise UserError("the control has a first stage: let it be one that starts from scratch")
    first = _at(build(*layers, recipe.first), recipe.first_share * target)
    start = f"{STAGE}{config_hash(first, with_seed=False)}"
    config = build(*layers, recipe.settings, {"trainer.initial_weights": start})
    check_same_shape(first.model, config.model)
    return _at(config, target - training_flops(first)), first


def _at(config: RunConfig, flops: float) -> RunConfig:
    return with_steps(config, max(1, round(flops / flops_per_token(config) / config.tokens_per_step)))
