"""Minimising a scaling law's objective from many starts at once, to the last digits.

The objective is the sum of Huber losses of log residuals. The log of each of a law's three terms is linear in the
coefficients, so any form is a matrix: shapes are S starts, three terms, R runs, P coefficients.

Each step tries two directions and takes the lower: Newton's, which converges to the last digits, and that of reweighted least
squares, which gets there from afar, where most residuals are beyond the threshold and the curvature is nearly nil. The
damping is Levenberg and Marquardt's.
"""

from dataclasses import dataclass

import numpy as np

HUBER = 1e-3

PULL = 1e-10  # towards 0: moves no determined coefficient's fourth digit, and makes undetermined ones equal everywhere

LONGEST = 5.0  # step in any coefficient

FINEST, STIFFEST = 1e-11, 1e6  # a step and a damping at which a start is done

LEAST, PATIENCE = 1e-12, 25  # a decrease that is none, and for how many steps: then a valley is flat

POLISH, ROUNDING = 6, 1e-13  # last steps, and by which share the objective may seem to rise in them


@dataclass(frozen=True)
class Task:
    """Arrays of the minimised objective. terms: (3, R, P), log terms = terms @ coefficients; loss, weights: (S, R),
    log losses and weights of the runs; hold, centre: (S, P, P) and (S, P), a quadratic towards a place."""

    terms: np.ndarray
    loss: np.ndarray
    weights: np.ndarray
    hold: np.ndarray
    centre: np.ndarray

    def only(self, live: np.ndarray) -> "Task":
        return Task(self.terms, self.loss[live], self.weights[live], self.hold[live], self.centre[live])

    def objective(self, theta_SP: np.ndarray) -> np.ndarray:
        """The sum of Huber losses at each start. Returns (S,)."""
        residual, _ = self._residuals(theta_SP)
        slope = np.clip(residual, -HUBER, HUBER)  # Huber's derivative
        return np.asarray((self.weights * slope * (residual - slope / 2)).sum(1))

    def value(self, theta_SP: np.ndarray) -> np.ndarray:
        """The same with what holds the coefficients: what is minimised. Returns (S,)."""
        away = theta_SP - self.centre
        return self.objective(theta_SP) + (away * np.einsum("spq,sq->sp", self.hold, away)).sum(1) / 2

    def slopes(self, theta_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The gradient (S, P), the matrix of reweighted least squares (S, P, P), and the Hessian."""
        residual, share = self._residuals(theta_SP)
        slope = self.weights * np.clip(residual, -HUBER, HUBER)
        along = np.einsum("skr,krp->srp", share, self.terms)  # of the log prediction
        gradient = np.einsum("sr,srp->sp", slope, along)
        gradient += np.einsum("spq,sq->sp", self.hold, theta_SP - self.centre)
        soft = self.weights * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), HUBER))
        inner = self.weights * (np.abs(residual) < HUBER) - slope
        flat = self.terms.reshape(-1, self.terms.shape[2])
        outer = (share * slope[:, None]).reshape(len(share), -1)
        turned = along.transpose(0, 2, 1)
        reweighted = (turned * soft[:, None]) @ along + self.hold
        return gradient, reweighted, (turned * inner[:, None]) @ along + (flat.T * outer[:, None]) @ flat + self.hold

    def _residuals(self, theta_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log residuals (S, R), and each term's share of the prediction (S, 3, R)."""
        logs = np.einsum("krp,sp->skr", self.terms, theta_SP)
        highest = logs.max(1)
        parts = np.exp(logs - highest[:, None])
        whole = parts.sum(1)
        return np.log(whole) + highest - self.loss, parts / whole[:, None]


def task(
    terms_3RP: np.ndarray,
    loss: np.ndarray,
    starts: int,
    *,
    weights_SR: np.ndarray | None = None,
    hold_SPP: np.ndarray | None = None,
    centre_SP: np.ndarray | None = None,
) -> Task:
    """The objective for S starts.

    loss: (R,) or (S, R) logs; weights: of the runs, 1 if left out; hold: a quadratic about centre, beside the pull.
    """
    size = terms_3RP.shape[2]
    pull = np.broadcast_to(PULL * np.eye(size), (starts, size, size))
    return Task(
        terms=terms_3RP,
        loss=np.broadcast_to(loss, (starts, terms_3RP.shape[1])),
        weights=np.ones((starts, terms_3RP.shape[1])) if weights_SR is None else weights_SR,
        hold=pull if hold_SPP is None else pull + hold_SPP,
        centre=np.zeros((starts, size)) if centre_SP is None else centre_SP,
    )


def minimise(wanted: Task, starts_SP: np.ndarray, *, steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Descend from each start. Returns the coefficients (S, P) and the objective there (S,)."""
    theta, value = np.array(starts_SP, dtype=float), wanted.value(starts_SP)
    damping, live = np.full(len(theta), 1e-3), np.arange(len(theta))
    stalled = np.zeros(len(theta), dtype=int)
    for _ in range(steps):
        here, at = wanted.only(live), theta[live]
        best_step, best = np.zeros_like(at), np.full(len(at), np.inf)
        gradient, reweighted, hessian = here.slopes(at)
        newton = _newton(gradient, hessian, damping[live] * np.diagonal(reweighted, axis1=1, axis2=2).max(1))
        for step in (newton, _reweighted(gradient, reweighted, damping[live])):
            reached = here.value(at + step)
            lower = reached < best
            best_step, best = np.where(lower[:, None], step, best_step), np.where(lower, reached, best)
        better = best < value[live]
        stalled[live] = np.where(best < value[live] * (1 - LEAST), 0, stalled[live] + 1)
        theta[live] = np.where(better[:, None], at + best_step, at)
        value[live] = np.where(better, best, value[live])
        damping[live] = np.where(better, np.maximum(damping[live] / 10, 1e-15), damping[live] * 8)
        done = (better & (np.abs(best_step).max(1) < FINEST)) | (damping[live] > STIFFEST) | (stalled[live] > PATIENCE)
        live = live[~done]
        if not len(live):
            break
    theta = _polished(wanted, theta)
    return theta, wanted.value(theta)


def _polished(wanted: Task, theta: np.ndarray) -> np.ndarray:
    """Newton's steps by the gradient alone: along a flat valley the objective's own rounding hides its last decrease."""
    gradient, _, hessian = wanted.slopes(theta)
    highest = wanted.value(theta) * (1 + ROUNDING)
    for _ in range(POLISH):
        moved = theta + _newton(gradient, hessian, np.zeros(len(theta)))
        slopes = wanted.slopes(moved)
        better = (np.abs(slopes[0]).max(1) < np.abs(gradient).max(1)) & (wanted.value(moved) <= highest)
        theta = np.where(better[:, None], moved, theta)
        gradient = np.where(better[:, None], slopes[0], gradient)
        hessian = np.where(better[:, None, None], slopes[2], hessian)
    return theta


def _newton(gradient: np.ndarray, hessian: np.ndarray, more: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(np.abs(values), PULL / 10) + more[:, None]
    return _short(-np.einsum("spq,sq->sp", vectors, np.einsum("sqp,sq->sp", vectors, gradient) / values))


def _reweighted(gradient: np.ndarray, matrix: np.ndarray, damping: np.ndarray) -> np.ndarray:
    scale = np.diagonal(matrix, axis1=1, axis2=2)
    stiff = matrix + (damping[:, None] * scale)[:, :, None] * np.eye(matrix.shape[1])
    return _short(-np.linalg.solve(stiff, gradient[..., None])[..., 0])


def _short(step: np.ndarray) -> np.ndarray:
    return step / np.maximum(1.0, np.abs(step).max(1) / LONGEST)[:, None]
