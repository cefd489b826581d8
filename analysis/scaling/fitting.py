"""Fitting a scaling law to runs.

The objective is the *sum* of Huber losses of log residuals (Hoffmann et al., arXiv 2203.15556, Sec. D.2; Besiroglu et al.,
arXiv 2404.10102, show that a mean with default tolerances stops early at wrong values), minimised from many starts.

It is nearly a sum of absolute values, which can have many minima, equal to the last digit and far apart: rounding would
then choose. So a fit also keeps what else fits as well: the other starts' minima, what is met along every eigenvector of the
Hessian, and what is found when a prediction is pushed aside. If those predict different losses, the fit isn't determined.
"""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.scaling.descent import minimise, task
from analysis.scaling.law import ScalingLaw, checked, law_of, terms_of

STARTS = 24  # of the grid's best

AS_GOOD = 1e-6  # by this share of the objective, and by log residuals of this size, two fits are equally good

UNDETERMINED = 1e-3  # spread of log predictions over equally good fits, from which on they say different things

NO_ERROR = 1e-4  # of a log: less than that a page doesn't show, and between two such errors rounding would choose

# By how much a log prediction is pushed, to see if it gives.
DISPLACEMENTS = UNDETERMINED * np.array([0.3, 0.6, 1.2, 12.0, 120.0])

WALK = np.geomspace(1e-3, 8.0, 10)  # how far along an eigenvector is looked for fits that are as good

HOLD = 1e-2  # how firmly a fit is held there while the rest adapts

GRID = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-1.0, 0.0, 1.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0))


def fit_law(
    parameters: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    *,
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    together: ArrayLike | None = None,
    asked: Mapping[str, ArrayLike] | None = None,
    **modifiers: ArrayLike,
) -> ScalingLaw:
    """Fit the law to R runs.

    parameters, tokens, loss: (R,) active parameters, training tokens, final loss in nats. modifiers: (R,) each, of
    MODIFIERS, for MoE forms in which the plain law is nested. bootstrap: refits on resampled runs, for intervals.
    together: (R,) labels; runs that share one, such as the seeds of a point, are resampled together. asked: columns (Q,) of
    places at which the law's `spread` has to be exact. Raises UserError for fewer than 8 runs, values that aren't positive
    and finite, and a range of N or D below a factor of 4: a slope over less says nothing about other scales.
    """
    columns = checked({"parameters": parameters, "tokens": tokens, "loss": loss, **modifiers})
    names = list(modifiers)
    logs = {name: np.log(column) for name, column in columns.items()}
    terms = terms_of(logs, names)
    there = None
    if asked is not None:
        there = terms_of({name: np.log(asked[name]) for name in ("parameters", "tokens", *names)}, names)
    theta, alike = best_of(terms, logs["loss"], first_guesses(terms, logs["loss"]), there)
    rng = rng or np.random.default_rng(0)
    drawn = [resampled(len(logs["loss"]), together, rng) for _ in range(bootstrap)]
    return law_of(theta, columns, names, refitted(terms, logs["loss"], theta, drawn), alike)


def first_guesses(terms: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The grid's best starts for one law: (STARTS, P), its objective rising."""
    more = terms.shape[2] - len(GRID)
    starts = np.array([[*start, *(0.0 for _ in range(more))] for start in itertools.product(*GRID)])
    return starts[np.argsort(task(terms, loss, len(starts)).value(starts), kind="stable")[:STARTS]]


def best_of(
    terms: np.ndarray, loss: np.ndarray, starts: np.ndarray, asked: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best fit from many starts, and what else fits as well.

    terms: (3, R, P); loss: (R,) logs; starts: (S, P); asked: (3, Q, P), places where other predictions are looked for.
    Returns (P,) coefficients, and any number of the like.
    """
    found, values = minimise(task(terms, loss, len(starts)), starts)
    best = found[values.argmin()]
    tried = [found, _along_eigenvectors(terms, loss, best)]
    tried += [_at_displaced_predictions(terms, loss, best, np.unique(asked, axis=1))] if asked is not None else []
    plain = task(terms, loss, 1)
    enough = plain.objective(best[None])[0] * (1 + AS_GOOD) + len(loss) * AS_GOOD**2 / 2
    return best, np.concatenate([some[plain.objective(some) <= enough] for some in tried])


def _at_displaced_predictions(terms: np.ndarray, loss: np.ndarray, theta: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Fits to one run more each, at an asked place, with another loss than the fit's. Returns (S, P)."""
    places = asked.shape[1]
    there = special.logsumexp(asked @ theta, axis=0)
    moves = [(place, way) for place in range(places) for way in (*DISPLACEMENTS, *-DISPLACEMENTS)]
    losses, weights = np.tile(np.concatenate([loss, there]), (len(moves), 1)), np.ones((len(moves), len(loss) + places))
    weights[:, len(loss) :] = 0.0
    for row, (place, way) in enumerate(moves):
        losses[row, len(loss) + place] += way
        weights[row, len(loss) + place] = 1.0
    wanted = task(np.concatenate([terms, asked], axis=1), losses, len(moves), weights_SR=weights)
    return minimise(wanted, np.tile(theta, (len(moves), 1)), steps=200)[0]


def _along_eigenvectors(terms: np.ndarray, loss: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Fits that are held at distances along the Hessian's eigenvectors, both ways, while all else adapts. Returns (S, P)."""
    _, vectors = np.linalg.eigh(task(terms, loss, 1).slopes(theta[None])[2][0])
    moves = [(way, far) for way in vectors.T for far in (*WALK, *-WALK)]
    starts = np.array([theta + far * way for way, far in moves])
    hold = np.array([HOLD * np.outer(way, way) for way, _ in moves])
    return minimise(task(terms, loss, len(starts), hold_SPP=hold, centre_SP=starts), starts, steps=60)[0]


def refitted(terms: np.ndarray, loss: np.ndarray, theta: np.ndarray, drawn: list[np.ndarray]) -> np.ndarray:
    """Fits from theta on to bootstrap samples, each given as places of runs. Returns (samples, P)."""
    if not drawn:
        return np.empty((0, len(theta)))
    weights = np.array([np.bincount(places, minlength=len(loss)) for places in drawn], dtype=float)
    return minimise(task(terms, loss, len(drawn), weights_SR=weights), np.tile(theta, (len(drawn), 1)))[0]


def resampled(runs: int, together: ArrayLike | None, rng: np.random.Generator) -> np.ndarray:
    """Places of a bootstrap sample of R runs, drawn by their label where they have one. Returns about (R,)."""
    if together is None:
        return rng.integers(0, runs, runs)
    labels_R = np.unique(np.asarray(together), return_inverse=True)[1]
    drawn = rng.integers(0, labels_R.max() + 1, labels_R.max() + 1)
    return np.concatenate([np.flatnonzero(labels_R == label) for label in drawn])
