"""The vocabulary of declarations: what `ablations/` and users' own files import."""

from core.config.presets import Recipe, preset, recipes
from sweeps.search.spec import Budget, Choice, Int, Log, Search, Uniform
from sweeps.studies.ablation import Ablation, Size
from sweeps.studies.arms import Arm
from sweeps.studies.decoders import Decoders
from sweeps.studies.factors import Factor
from sweeps.studies.ladder import Ladder, Target
from sweeps.studies.study import Level, Resources

__all__ = [
    "Ablation", "Arm", "Budget", "Choice", "Decoders", "Factor", "Int", "Ladder", "Level", "Log", "Recipe", "Resources",
    "Search", "Size", "Target", "Uniform", "preset", "recipes",
]  # fmt: skip
