"""Runs of several families of models, and the forms of a law that they may share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.scaling.law import MODIFIERS


@dataclass(frozen=True)
class Runs:
    """R runs. family: (R,) names; the other columns (R,): active parameters, training tokens, final loss in nats, experts
    over chosen experts, granularity; point: labels, the same for the seeds of one point."""

    family: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    sparsity: np.ndarray
    granularity: np.ndarray
    point: np.ndarray

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(self.family.tolist()))

    @property
    def largest(self) -> np.ndarray:
        """Mask of the runs of their family's largest model. (R,) bool."""
        top = {name: self.parameters[self.family == name].max() for name in self.families}
        return np.array([n == top[name] for n, name in zip(self.parameters, self.family, strict=True)], dtype=bool)

    @property
    def modifiers(self) -> tuple[str, ...]:
        """The modifiers that differ between runs."""
        return tuple(name for name in MODIFIERS if len(np.unique(getattr(self, name))) > 1)

    def where(self, chosen_R: np.ndarray) -> "Runs":
        return Runs(**{name: column[chosen_R] for name, column in vars(self).items()})

    def columns(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("parameters", "tokens", "loss", *names)}

    def of(self, family: str) -> "Runs":
        return self.where(self.family == family)


@dataclass(frozen=True)
class Form:
    """A form and how far off it is on every family's largest model: root mean square of log residuals.

    error: None where it wasn't judged, and where the other runs don't determine the form: then equally good fits differ by
    `spread` in their log predictions of those models.
    """

    name: str
    modifiers: tuple[str, ...]
    coefficients: int
    error: float | None
    spread: float = 0.0
