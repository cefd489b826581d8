"""A ladder's points, its fitted law, and what follows from that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from analysis.scaling.extrapolation import Extrapolation
from analysis.scaling.forms import Form
from analysis.scaling.isoflop import Cost, Minimum, counted_cost
from analysis.scaling.law import ScalingLaw, checked
from analysis.scaling.trend import Interval, Trend
from core.errors import UserError
from core.records.designs import Design


@dataclass(frozen=True)
class Point:
    """A model on a number of tokens, and what its n finished seeds came to (None where none did).

    parameters: active; flops: counted, of the whole run; budget: None outside of the IsoFLOP design.
    """

    label: str
    family: str
    parameters: float
    tokens: float
    flops: float
    flops_per_token: float
    budget: float | None
    sparsity: float
    granularity: float
    epochs: float
    n: int
    loss: float | None
    health: Mapping[str, float]


@dataclass(frozen=True)
class Coefficients:
    """A law's coefficients with bootstrap intervals. families: whose it is."""

    families: tuple[str, ...]
    values: Mapping[str, Interval]
    residual: float
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Optimum:
    """The best model of a family for a budget of counted FLOPs. measured: None where no valley was trained; the rest, by the
    law: None where the runs don't determine it."""

    family: str
    flops: float
    measured: Minimum | None
    parameters: Interval | None = None
    tokens: Interval | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Health:
    """A router's metric against scale in one sparse family. at: its value at each target; bound: the largest possible."""

    metric: str
    family: str
    trend: Trend
    at: Mapping[str, Interval]
    bound: float | None


@dataclass(frozen=True)
class Ladder:
    """Points and settings of a ladder.

    laws: by family, the same one where they share it; empty where none could be fitted, and `notes` say why. weak: why the
    runs don't determine the law, and then nothing is extrapolated. floor: NELBO of the source's exact posterior on the
    validation masks, where it is known.
    """

    metric: str
    points: tuple[Point, ...]
    forms: tuple[Form, ...]
    form: Form
    coefficients: tuple[Coefficients, ...]
    optima: tuple[Optimum, ...]
    extrapolations: tuple[Extrapolation, ...]
    health: tuple[Health, ...]
    floor: float | None
    notes: tuple[str, ...]
    targets: Mapping[str, Mapping[str, float]]
    weak: tuple[str, ...] = ()
    laws: Mapping[str, ScalingLaw] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Every number of it but the bootstrap's single refits."""
        content = asdict(self)
        del content["laws"]
        return content

    def cost(self, family: str) -> Cost:
        """Counted training FLOPs per token at N active parameters."""
        own = [point for point in self.points if point.family == family]
        return counted_cost([point.parameters for point in own], [point.flops_per_token for point in own])

    def modifiers(self, family: str) -> dict[str, float]:
        """Arguments of the law for a family beside N and D."""
        point = next(point for point in self.points if point.family == family)
        return {name: getattr(point, name) for name in self.laws[family].modifiers}


def unfittable(design: Design) -> str:
    """Reason why no law could be fitted to a ladder if all runs finished; empty if one could."""
    parameters = [arm.parameters.active for arm in design.arms]
    tokens = [arm.point.tokens for arm in design.arms if arm.point is not None]
    try:
        checked({"parameters": parameters, "tokens": tokens, "loss": np.ones(len(parameters))})
    except UserError as error:
        return str(error)
    return ""
