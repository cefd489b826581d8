"""The vocabulary of declarations: what `ablations/` and users' own files import."""

from sweeps.search.spec import Budget, Choice, Int, Log, Search, Uniform
from sweeps.studies.ablation import Ablation, Arm, Decoders, Factor, Ladder, Level, Resources, Size, Target

__all__ = [
    "Ablation",
    "Arm",
    "Budget",
    "Choice",
    "Decoders",
    "Factor",
    "Int",
    "Ladder",
    "Level",
    "Log",
    "Resources",
    "Search",
    "Size",
    "Target",
    "Uniform",
]
