"""Trend of a quantity such as MaxVio with scale: a power law in N and D, with a band."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.scaling.law import LEAST_RANGE, LEAST_RUNS
from core.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """log y = log c + a log N + b log D + a normal error, by least squares over P points.

    parameters, tokens: a and b with t intervals. error: standard deviation of the log error, on P - 3 degrees of freedom.
    """

    parameters: Interval
    tokens: Interval
    error: float
    points: int
    coefficients: tuple[float, float, float]
    covariance_33: tuple[tuple[float, ...], ...]  # of the coefficients, in units of the error's variance

    def predict(self, parameters: float, tokens: float) -> Interval:
        """The value at N and D with a 95 % prediction interval: where another point of the same design would lie, if the
        power law holds as far as that."""
        at = np.array([1.0, math.log(parameters), math.log(tokens)])
        centre = float(at @ np.array(self.coefficients))
        spread = self.error * math.sqrt(1 + float(at @ np.array(self.covariance_33) @ at))
        reach = float(special.stdtrit(self.points - 3, 0.975)) * spread
        return Interval(*(math.exp(min(700.0, max(-700.0, centre + side))) for side in (0.0, -reach, reach)))


def fit_trend(parameters: ArrayLike, tokens: ArrayLike, values: ArrayLike) -> Trend:
    """Fit the trend to P points.

    parameters, tokens, values: (P,) active parameters, training tokens, and what is followed; of seeds of one point give
    their geometric mean, since the point is the unit. Assumes equal errors in logs. Raises UserError for fewer than 8 points,
    values that aren't positive and finite, and a range of N or D below a factor of 4.
    """
    columns = [np.asarray(column, dtype=float) for column in (parameters, tokens, values)]
    if not all(np.isfinite(column).all() and (column > 0).all() for column in columns):
        raise UserError("trend: there are values that aren't positive and finite, so they have no logarithm")
    points = len(columns[0])
    if points < LEAST_RUNS:
        raise UserError(f"trend: {points} points are too few; at least {LEAST_RUNS} are needed")
    for name, column in zip(("parameters", "tokens"), columns, strict=False):
        if column.max() / column.min() < LEAST_RANGE:
            raise UserError(f"trend: {name} differ by less than a factor of {LEAST_RANGE:g}, too little to extrapolate")
    design_P3 = np.column_stack([np.ones(points), *np.log(columns[:2])])
    log_P = np.log(columns[2])
    if np.linalg.matrix_rank(design_P3) < 3:
        raise UserError(
            "trend: tokens are proportional to parameters in every point, so their effects can't be told apart"
        )
    covariance_33 = np.linalg.inv(design_P3.T @ design_P3)
    found = covariance_33 @ design_P3.T @ log_P
    error = math.sqrt(((log_P - design_P3 @ found) ** 2).sum() / (points - 3))
    reach = special.stdtrit(points - 3, 0.975) * error * np.sqrt(np.diag(covariance_33))
    exponents = [Interval(float(found[i]), float(found[i] - reach[i]), float(found[i] + reach[i])) for i in (1, 2)]
    return Trend(
        parameters=exponents[0],
        tokens=exponents[1],
        error=error,
        points=points,
        coefficients=(float(found[0]), float(found[1]), float(found[2])),
        covariance_33=tuple(tuple(map(float, row)) for row in covariance_33),
    )
