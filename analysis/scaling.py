"""Scaling laws: L(N, D) = E + A / N^alpha + B / D^beta, fitted as the Chinchilla papers do.

Shapes: R runs. A, B and E are fitted as exponentials, so that all terms are positive. The objective is the *sum* of Huber
losses of log residuals (Hoffmann et al., arXiv 2203.15556, Sec. D.2; Besiroglu et al., arXiv 2404.10102, show that a mean
with default tolerances stops early at wrong values), minimised from many starts by L-BFGS with an analytic gradient.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from core.errors import UserError

HUBER = 1e-3
LEAST_RUNS, LEAST_RANGE = 8, 4.0
STARTS = 24  # of the grid's best
GRID = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-1.0, 0.0, 1.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0))
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


def fit_law(
    parameters: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    together: ArrayLike | None = None,
    **modifiers: ArrayLike,
) -> ScalingLaw:
    """Fit the law to R runs.

    parameters, tokens, loss: (R,) active parameters, training tokens, final loss in nats. modifiers: (R,) each, of
    MODIFIERS, for MoE forms in which the plain law is nested. bootstrap: refits on resampled runs, for intervals.
    together: (R,) labels; runs that share one, such as the seeds of a point, are resampled together. Raises UserError for
    fewer than 8 runs, values that aren't positive and finite, and a range of N or D below a factor of 4: a
    slope over less says nothing about other scales.
    """
    columns = checked({"parameters": parameters, "tokens": tokens, "loss": loss, **modifiers})
    names = list(modifiers)
    logs = {name: np.log(column) for name, column in columns.items()}
    theta = _fit(logs, names)
    samples: list[np.ndarray] = []
    rng = rng or np.random.default_rng(0)
    for _ in range(bootstrap):
        chosen = resampled(len(logs["loss"]), together, rng)
        samples.append(descend(theta, {name: column[chosen] for name, column in logs.items()}, names).x)
    return law_of(theta, columns, names, samples)


def law_of(
    theta: np.ndarray, columns: Mapping[str, np.ndarray], names: list[str], samples: Sequence[np.ndarray]
) -> ScalingLaw:
    """The law of fitted coefficients. columns: what it was fitted to; samples: bootstrap refits of the coefficients."""
    logs = {name: np.log(column) for name, column in columns.items()}
    residual = _log_prediction(theta, logs, names) - logs["loss"]
    kept = [tuple(map(float, sample)) for sample in samples]
    return ScalingLaw(
        **_law(theta, names),
        intervals=_intervals(kept, names),
        residual=float(np.sqrt((residual**2).mean())),
        ranges={
            name: (float(columns[name].min()), float(columns[name].max())) for name in ("parameters", "tokens", *names)
        },
        samples=tuple(kept),
    )


def resampled(runs: int, together: ArrayLike | None, rng: np.random.Generator) -> np.ndarray:
    """Places of a bootstrap sample of R runs, drawn by their label where they have one. Returns about (R,)."""
    if together is None:
        return rng.integers(0, runs, runs)
    labels_R = np.unique(np.asarray(together), return_inverse=True)[1]
    drawn = rng.integers(0, labels_R.max() + 1, labels_R.max() + 1)
    return np.concatenate([np.flatnonzero(labels_R == label) for label in drawn])


@dataclass(frozen=True)
class Form:
    """A form of the law and how far off it is at the scale that was held out: root mean square of log residuals."""

    modifiers: tuple[str, ...]
    error: float
    law: ScalingLaw


def compare_forms(
    parameters: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    held_out: ArrayLike | None = None,
    **modifiers: ArrayLike,
) -> tuple[Form, ...]:
    """All nested forms, fitted without the runs of the largest N and judged on them; the best first.

    A form with more terms fits what it has seen better by construction: only what it hasn't seen tells. held_out: (R,)
    bool, other runs to judge on, such as the largest of several families.
    """
    columns = checked({"parameters": parameters, "tokens": tokens, "loss": loss, **modifiers})
    largest = columns["parameters"] == columns["parameters"].max()
    held = largest if held_out is None else np.asarray(held_out, dtype=bool)
    found = []
    for size in range(len(modifiers) + 1):
        for names in itertools.combinations(modifiers, size):
            kept = {name: columns[name][~held] for name in ("parameters", "tokens", "loss", *names)}
            law = fit_law(**kept)
            found.append(Form(names, error_on({name: column[held] for name, column in columns.items()}, law), law))
    return tuple(sorted(found, key=lambda form: form.error))


def error_on(columns: Mapping[str, np.ndarray], law: ScalingLaw) -> float:
    """Root mean square of a law's log residuals on runs."""
    given = {name: columns[name] for name in law.modifiers}
    predicted = law.predict(columns["parameters"], columns["tokens"], **given)
    return float(np.sqrt((np.log(predicted / columns["loss"]) ** 2).mean()))


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


def _fit(logs: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    starts = [np.array([*start, *(0.0 for _ in names)]) for start in itertools.product(*GRID)]
    values = [objective(start, logs, names)[0] for start in starts]
    best = [starts[place] for place in np.argsort(values, kind="stable")[:STARTS]]
    return min((descend(start, logs, names) for start in best), key=lambda found: found.fun).x


def descend(start: np.ndarray, logs: Mapping[str, np.ndarray], names: list[str]) -> Any:
    return minimise(objective, start, logs, names)


def minimise(function: Callable[..., tuple[float, np.ndarray]], start: np.ndarray, *arguments: Any) -> Any:
    """L-BFGS to the last digits: with SciPy's own tolerances the fit stops at wrong values."""
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10}
    return optimize.minimize(function, start, arguments, jac=True, method="L-BFGS-B", options=options)


def _terms(theta: np.ndarray, logs: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Logs of the three terms: (3, R). theta = a, b, e, alpha, beta, modifiers' exponents."""
    terms = np.empty((3, len(logs["tokens"])))
    terms[0] = theta[0] - theta[3] * logs["parameters"]
    for exponent, name in zip(theta[5:], names, strict=True):
        terms[0] -= exponent * logs[name]
    terms[1] = theta[1] - theta[4] * logs["tokens"]
    terms[2] = theta[2]
    return terms


def _log_prediction(theta: np.ndarray, logs: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    return np.asarray(special.logsumexp(_terms(theta, logs, names), axis=0))


def objective(theta: np.ndarray, logs: Mapping[str, np.ndarray], names: list[str]) -> tuple[float, np.ndarray]:
    """The sum of Huber losses of log residuals and its gradient.

    In plain numpy: it is asked thousands of times, and on a few dozen runs SciPy's dispatch takes ten times the arithmetic.
    """
    terms = _terms(theta, logs, names)
    highest = terms.max(0)
    parts = np.exp(terms - highest)  # (3, R)
    whole = parts.sum(0)
    residual = np.log(whole) + highest - logs["loss"]
    slope = np.minimum(np.maximum(residual, -HUBER), HUBER)  # Huber's derivative
    share = parts * (slope / whole)
    along = [-(share[0] @ logs["parameters"]), -(share[1] @ logs["tokens"])]
    more = [-(share[0] @ logs[name]) for name in names]
    return float(slope @ (residual - slope / 2)), np.array([*share.sum(1), *along, *more])


def _law(theta: np.ndarray, names: list[str]) -> dict[str, Any]:
    a, b, e, alpha, beta, *rest = map(float, theta)
    # Where a term isn't determined its logarithm may run away: no infinities, which would turn predictions into NaN.
    powers = {"A": np.exp(min(a, 700)), "B": np.exp(min(b, 700)), "E": np.exp(e)}
    law: dict[str, Any] = {name: float(value) for name, value in powers.items()} | {"alpha": alpha, "beta": beta}
    return law | {"modifiers": dict(zip(names, rest, strict=True))}


def _theta(law: ScalingLaw) -> np.ndarray:
    with np.errstate(divide="ignore"):  # a term may have underflowed
        return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta, *law.modifiers.values()])


def _predict(theta: np.ndarray, parameters: ArrayLike, tokens: ArrayLike, columns: list[np.ndarray]) -> np.ndarray:
    first = theta[0] - theta[3] * np.log(np.asarray(parameters, dtype=float))
    for exponent, column in zip(theta[5:], columns, strict=True):
        first = first - exponent * np.log(column)
    second = theta[1] - theta[4] * np.log(np.asarray(tokens, dtype=float))
    return np.asarray(np.exp(theta[2]) + np.exp(first) + np.exp(second))


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
