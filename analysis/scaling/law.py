"""Scaling laws: L(N, D) = E + A / N^alpha + B / D^beta. analysis.scaling.fitting fits them.

Shapes: R runs. A, B and E are fitted as exponentials, so that all terms are positive.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from core.errors import UserError

LEAST_RUNS, LEAST_RANGE = 8, 4.0
MODIFIERS = ("sparsity", "granularity")
FARTHEST = 600.0  # log of the largest N that is told


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law.

    modifiers: exponents by name of what multiplies the parameter term: x^-exponent, x the ratio of total to chosen experts
    ("sparsity") or how finely experts are cut ("granularity"). ranges: smallest and largest N, D that were fitted.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    modifiers: Mapping[str, float] = field(default_factory=dict)
    residual: float = 0.0  # root mean square of log residuals
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: Sequence[np.ndarray] | np.ndarray = ()  # coefficients of bootstrap refits, as _theta has them
    alike: Sequence[np.ndarray] | np.ndarray = ()  # those that fit the same runs as well, as far as rounding goes

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap percentiles of each coefficient over runs; empty where the law was fitted without a bootstrap."""
        if not len(self.samples):
            return {}
        ends = np.percentile(np.array(self.samples), [2.5, 97.5], axis=0)
        ends[:, :3] = np.exp(ends[:, :3])
        names = ("A", "B", "E", "alpha", "beta", *self.modifiers)
        return {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}

    def predict(self, parameters: ArrayLike, tokens: ArrayLike, **modifiers: ArrayLike) -> np.ndarray:
        """Loss at N parameters and D tokens; modifiers that were fitted must be given. Broadcasts."""
        return np.asarray(np.exp(_log_loss(_theta(self), parameters, tokens, self._columns(modifiers))))

    def band(self, parameters: float, tokens: float, **modifiers: float) -> tuple[float, float]:
        """95 % of the bootstrap refits' predictions: the law's own uncertainty, not that it is the right law.

        Raises UserError where the law was fitted without a bootstrap.
        """
        if not len(self.samples):
            raise UserError("band: fit the law with bootstrap=... first")
        columns = self._columns(modifiers)
        found = [_log_loss(theta, parameters, tokens, columns) for theta in self.samples]
        low, high = np.percentile(np.exp(found), [2.5, 97.5])
        return float(low), float(high)

    def spread(self, parameters: ArrayLike, tokens: ArrayLike, **modifiers: ArrayLike) -> float:
        """Largest difference of the log prediction between fits as good as this one, over the given points.

        About 0 where the runs determine the law. It isn't the uncertainty that comes of the runs' scatter: that is `band`.
        """
        columns = self._columns(modifiers)
        found = [_log_loss(one, parameters, tokens, columns) for one in (_theta(self), *self.alike)]
        return float(np.ptp(found, axis=0).max())

    def beyond(self, parameters: float, tokens: float, **modifiers: float) -> dict[str, float]:
        """By which factor N, D and modifiers lie outside of what was fitted: 1 within, 700 for 7B from runs up to 10M."""
        out = {}
        for name, value in {"parameters": parameters, "tokens": tokens, **modifiers}.items():
            low, high = self.ranges[name]
            out[name] = max(value / high, low / value, 1.0)
        return out

    def compute_optimal(self, flops: float, **modifiers: float) -> tuple[float, float]:
        """N and D that minimise the loss for C = 6 N D FLOPs (Hoffmann et al., Eq. 4), at given modifiers.

        Where a term doesn't fall, or is 0, there is none: then N is about 1e-260 or 1e260, which percentiles can take.
        """
        a, b, _, alpha, beta, *rest = _theta(self)  # logs: of terms that runs don't determine, powers overflow
        for exponent, column in zip(rest, self._columns(modifiers), strict=True):
            a = a - exponent * np.log(column)
        if alpha * beta > 0:
            log_parameters = (a - b + np.log(alpha / beta) + beta * np.log(flops / 6)) / (alpha + beta)
        else:
            log_parameters = np.inf if alpha > beta else -np.inf
        log_parameters = np.clip(log_parameters, -FARTHEST, FARTHEST)
        return float(np.exp(log_parameters)), float(np.exp(np.log(flops / 6) - log_parameters))

    def refits(self) -> Iterator["ScalingLaw"]:
        """The law of every bootstrap sample: the spread of anything that follows from it is that thing's interval."""
        for theta in self.samples:
            yield ScalingLaw(**_coefficients(theta, self.modifiers), ranges=self.ranges)

    def _columns(self, given: Mapping[str, ArrayLike]) -> list[np.ndarray]:
        if set(given) != set(self.modifiers):
            wanted = ", ".join(self.modifiers) or "no modifier"
            raise UserError(f"predict: this law takes {wanted}, not {', '.join(given) or 'none'}")
        return [np.asarray(given[name], dtype=float) for name in self.modifiers]


def law_of(
    theta: np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    samples: Sequence[np.ndarray] | np.ndarray = (),
    alike: Sequence[np.ndarray] | np.ndarray = (),
) -> ScalingLaw:
    """The law of fitted coefficients. columns: what it was fitted to; samples: bootstrap refits of the coefficients; alike:
    coefficients that fit as well."""
    logs = {name: np.log(column) for name, column in columns.items()}
    residual = special.logsumexp(terms_of(logs, names) @ theta, axis=0) - logs["loss"]
    fitted = {name: columns[name] for name in ("parameters", "tokens", *names)}
    return ScalingLaw(
        **_coefficients(theta, names),
        residual=float(np.sqrt((residual**2).mean())),
        ranges={name: (float(column.min()), float(column.max())) for name, column in fitted.items()},
        samples=samples,
        alike=alike,
    )


def checked(columns: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The runs' columns as arrays. Raises UserError for what `fit_law` refuses."""
    arrays = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    runs = len(arrays["loss"]) if arrays["loss"].ndim == 1 else 0
    for name, column in arrays.items():
        if name not in ("parameters", "tokens", "loss", *MODIFIERS):
            raise UserError(f"scaling law: unknown modifier '{name}'; known: {', '.join(MODIFIERS)}")
        if column.shape != (runs,):
            raise UserError(f"scaling law: {name} has shape {column.shape}, and the runs are {runs}")
        if not (np.isfinite(column).all() and (column > 0).all()):
            raise UserError(f"scaling law: {name} has values that aren't positive and finite; leave failed runs out")
    if runs < LEAST_RUNS:
        raise UserError(
            f"scaling law: {runs} runs are too few for its five coefficients; at least {LEAST_RUNS} are needed"
        )
    for name in ("parameters", "tokens"):
        spread = arrays[name].max() / arrays[name].min()
        if spread < LEAST_RANGE:
            raise UserError(
                f"scaling law: {name} differ by a factor of {spread:.2g}, and one of at least {LEAST_RANGE:g} is needed: "
                "a slope over less says nothing about other scales"
            )
    for name in set(arrays) & set(MODIFIERS):
        if arrays[name].min() == arrays[name].max():
            raise UserError(f"scaling law: {name} is the same in all runs; leave it out")
    return arrays


def terms_of(logs: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Matrix from theta to the logs of the three terms, theta = a, b, e, alpha, beta, modifiers' exponents.

    logs: (R,) each, of parameters, tokens and the named modifiers. Returns (3, R, 5 + modifiers).
    """
    terms = np.zeros((3, len(logs["tokens"]), 5 + len(names)))
    terms[0, :, 0] = terms[1, :, 1] = terms[2, :, 2] = 1.0
    terms[0, :, 3], terms[1, :, 4] = -logs["parameters"], -logs["tokens"]
    for place, name in enumerate(names):
        terms[0, :, 5 + place] = -logs[name]
    return terms


def _coefficients(theta: np.ndarray, names: Iterable[str]) -> dict[str, Any]:
    a, b, e, alpha, beta, *rest = map(float, theta)
    # Where a term isn't determined its logarithm may run away: no infinities, which would turn predictions into NaN.
    powers = {"A": float(np.exp(min(a, 700))), "B": float(np.exp(min(b, 700))), "E": float(np.exp(e))}
    return powers | {"alpha": alpha, "beta": beta, "modifiers": dict(zip(names, rest, strict=True))}


def _theta(law: ScalingLaw) -> np.ndarray:
    with np.errstate(divide="ignore"):  # a term may have underflowed
        return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta, *law.modifiers.values()])


def _log_loss(theta: np.ndarray, parameters: ArrayLike, tokens: ArrayLike, columns: Sequence[np.ndarray]) -> np.ndarray:
    first = theta[0] - theta[3] * np.log(np.asarray(parameters, dtype=float))
    for exponent, column in zip(theta[5:], columns, strict=True):
        first = first - exponent * np.log(column)
    second = theta[1] - theta[4] * np.log(np.asarray(tokens, dtype=float))
    return np.asarray(np.logaddexp(np.logaddexp(first, second), theta[2]))
