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
    """A fitted law. intervals: of each coefficient, bootstrap percentiles over runs (empty where none was asked for).

    modifiers: exponents by name of what multiplies the parameter term: x^-exponent, x the ratio of total to chosen experts
    ("sparsity") or how finely experts are cut ("granularity"). ranges: smallest and largest N, D that were fitted.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    modifiers: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    residual: float = 0.0  # root mean square of log residuals
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: tuple[tuple[float, ...], ...] = ()  # bootstrap refits, as _theta has them
    alike: tuple[tuple[float, ...], ...] = ()  # coefficients that fit the same runs as well, as far as rounding goes

    def predict(self, parameters: ArrayLike, tokens: ArrayLike, **modifiers: ArrayLike) -> np.ndarray:
        """Loss at N parameters and D tokens; modifiers that were fitted must be given. Broadcasts."""
        return _predict(_theta(self), parameters, tokens, self._columns(modifiers))

    def band(
        self, parameters: float, tokens: float, *, coverage: float = 0.95, **modifiers: float
    ) -> tuple[float, float]:
        """Percentiles of the bootstrap refits' predictions: the law's own uncertainty, not that it is the right law.

        Raises UserError where the law was fitted without a bootstrap.
        """
        if not self.samples:
            raise UserError("band: fit the law with bootstrap=... first")
        columns = self._columns(modifiers)
        found = [float(_predict(np.array(theta), parameters, tokens, columns)) for theta in self.samples]
        low, high = np.percentile(found, [50 * (1 - coverage), 50 * (1 + coverage)])
        return float(low), float(high)

    def spread(self, parameters: ArrayLike, tokens: ArrayLike, **modifiers: ArrayLike) -> float:
        """Largest difference of the log prediction between fits as good as this one, over the given points.

        About 0 where the runs determine the law. It isn't the uncertainty that comes of the runs' scatter: that is `band`.
        """
        columns = self._columns(modifiers)
        all_terms = [_log_terms(np.array(one), parameters, tokens, columns) for one in (_theta(self), *self.alike)]
        found = [np.logaddexp(np.logaddexp(first, second), third) for first, second, third in all_terms]
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
            yield ScalingLaw(**_law(np.array(theta), list(self.modifiers)), ranges=self.ranges)

    def _columns(self, given: Mapping[str, ArrayLike]) -> list[np.ndarray]:
        if set(given) != set(self.modifiers):
            wanted = ", ".join(self.modifiers) or "no modifier"
            raise UserError(f"predict: this law takes {wanted}, not {', '.join(given) or 'none'}")
        return [np.asarray(given[name], dtype=float) for name in self.modifiers]


def law_of(
    theta: np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: list[str],
    samples: Iterable[np.ndarray] = (),
    alike: Iterable[np.ndarray] = (),
) -> ScalingLaw:
    """The law of fitted coefficients. columns: what it was fitted to; samples: bootstrap refits of the coefficients; alike:
    coefficients that fit as well."""
    logs = {name: np.log(column) for name, column in columns.items()}
    residual = special.logsumexp(terms_of(logs, names) @ theta, axis=0) - logs["loss"]
    kept = [tuple(map(float, sample)) for sample in samples]
    return ScalingLaw(
        **_law(theta, names),
        intervals=_intervals(kept, names),
        residual=float(np.sqrt((residual**2).mean())),
        ranges={
            name: (float(columns[name].min()), float(columns[name].max())) for name in ("parameters", "tokens", *names)
        },
        samples=tuple(kept),
        alike=tuple(tuple(map(float, one)) for one in alike),
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


def _law(theta: np.ndarray, names: list[str]) -> dict[str, Any]:
    a, b, e, alpha, beta, *rest = map(float, theta)
    # Where a term isn't determined its logarithm may run away: no infinities, which would turn predictions into NaN.
    powers = {"A": np.exp(min(a, 700)), "B": np.exp(min(b, 700)), "E": np.exp(e)}
    law: dict[str, Any] = {name: float(value) for name, value in powers.items()} | {"alpha": alpha, "beta": beta}
    return law | {"modifiers": dict(zip(names, rest, strict=True))}


def _theta(law: ScalingLaw) -> np.ndarray:
    with np.errstate(divide="ignore"):  # a term may have underflowed
        return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta, *law.modifiers.values()])


def _log_terms(
    theta: np.ndarray, parameters: ArrayLike, tokens: ArrayLike, columns: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    first = theta[0] - theta[3] * np.log(np.asarray(parameters, dtype=float))
    for exponent, column in zip(theta[5:], columns, strict=True):
        first = first - exponent * np.log(column)
    return first, theta[1] - theta[4] * np.log(np.asarray(tokens, dtype=float)), theta[2]


def _predict(theta: np.ndarray, parameters: ArrayLike, tokens: ArrayLike, columns: list[np.ndarray]) -> np.ndarray:
    first, second, third = _log_terms(theta, parameters, tokens, columns)
    return np.asarray(np.exp(third) + np.exp(first) + np.exp(second))


def _intervals(samples: list[tuple[float, ...]], names: list[str]) -> dict[str, tuple[float, float]]:
    if not samples:
        return {}
    low, high = np.percentile(np.array(samples), [2.5, 97.5], axis=0)
    keys = ["A", "B", "E", "alpha", "beta", *names]
    bounds = {}
    for place, key in enumerate(keys):
        ends = (low[place], high[place])
        bounds[key] = tuple(float(np.exp(end) if key in "ABE" else end) for end in ends)
    return bounds  # type: ignore[return-value]
