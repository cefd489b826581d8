"""Fitting a scaling law to runs, and its nested forms beside each other.

The objective is the *sum* of Huber losses of log residuals (Hoffmann et al., arXiv 2203.15556, Sec. D.2; Besiroglu et al.,
arXiv 2404.10102, show that a mean with default tolerances stops early at wrong values), minimised from many starts by L-BFGS
with an analytic gradient.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from analysis.scaling import ScalingLaw, checked, error_on, law_of, log_terms

HUBER = 1e-3

STARTS = 24  # of the grid's best

GRID = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-1.0, 0.0, 1.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0))


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


def objective(theta: np.ndarray, logs: Mapping[str, np.ndarray], names: list[str]) -> tuple[float, np.ndarray]:
    """The sum of Huber losses of log residuals and its gradient.

    In plain numpy: it is asked thousands of times, and on a few dozen runs SciPy's dispatch takes ten times the arithmetic.
    """
    terms = log_terms(theta, logs, names)
    highest = terms.max(0)
    parts = np.exp(terms - highest)  # (3, R)
    whole = parts.sum(0)
    residual = np.log(whole) + highest - logs["loss"]
    slope = np.minimum(np.maximum(residual, -HUBER), HUBER)  # Huber's derivative
    share = parts * (slope / whole)
    along = [-(share[0] @ logs["parameters"]), -(share[1] @ logs["tokens"])]
    more = [-(share[0] @ logs[name]) for name in names]
    return float(slope @ (residual - slope / 2)), np.array([*share.sum(1), *along, *more])
