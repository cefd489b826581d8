"""The model size that makes the most of a compute budget: as measured, and as a law has it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.scaling.law import ScalingLaw
from analysis.scaling.trend import Interval

Cost = Callable[[np.ndarray], np.ndarray]  # training FLOPs per token at N active parameters
REACH = 30.0  # how far outside of the measured sizes a law's optimum is looked for


@dataclass(frozen=True)
class Minimum:
    """Minimum of the losses of a budget."""

    parameters: float
    loss: float


def measured_minimum(parameters: ArrayLike, loss: ArrayLike) -> Minimum | None:
    """The vertex of the parabola of the loss in log N through the runs of one budget (Hoffmann et al., arXiv 2203.15556, Sec.
    3.2, approach 2).

    parameters, loss: (M,). None for fewer than three models, and where the vertex doesn't lie between two of them: then the
    best model of the budget is smaller or larger than all that were trained.
    """
    log_M, loss_M = np.log(np.asarray(parameters, dtype=float)), np.asarray(loss, dtype=float)
    if len(np.unique(log_M)) < 3:
        return None
    centre = log_M.mean()
    curved, slope, height = np.polyfit(log_M - centre, loss_M, 2)
    place = centre - slope / (2 * curved) if curved > 0 else np.inf
    if not log_M.min() < place < log_M.max():
        return None
    return Minimum(float(np.exp(place)), float(height - slope**2 / (4 * curved)))


def counted_cost(parameters: ArrayLike, flops_per_token: ArrayLike) -> Cost:
    """FLOPs per token of a model of N active parameters, interpolated from a family's models.

    It is 6 N and attention over the sequence; their ratio is interpolated in log N, and beyond the models it stays as it is.
    """
    order = np.argsort(np.asarray(parameters, dtype=float))
    log_M = np.log(np.asarray(parameters, dtype=float)[order])
    ratio_M = np.asarray(flops_per_token, dtype=float)[order] / (6 * np.exp(log_M))
    return lambda n: 6 * np.asarray(n) * np.interp(np.log(n), log_M, ratio_M)


def curve(
    law: ScalingLaw, flops: float, cost: Cost, parameters: np.ndarray, modifiers: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that a budget buys each of N models, and the law's loss there. Returns two arrays like `parameters`."""
    tokens = flops / cost(parameters)
    return tokens, law.predict(parameters, tokens, **modifiers)


def law_minimum(
    law: ScalingLaw, flops: float, cost: Cost, modifiers: dict[str, float]
) -> tuple[Interval, Interval, float]:
    """The law's best N and D for a budget, with 95 % bootstrap intervals, and its loss there.

    Looked for from 1/30 of the smallest model that the law was fitted to, to 30 times the largest: an interval that ends
    there is open on that side.
    """
    low, high = law.ranges["parameters"]
    grid = np.geomspace(low / REACH, high * REACH, 2000)

    def best(one: ScalingLaw) -> tuple[float, float, float]:
        tokens, loss = curve(one, flops, cost, grid, modifiers)
        place = int(loss.argmin())
        return float(grid[place]), float(tokens[place]), float(loss[place])

    parameters, tokens, loss = best(law)
    spread = np.array([best(one)[:2] for one in law.refits()])
    return interval(parameters, spread[:, 0]), interval(tokens, spread[:, 1]), loss


def interval(value: float, refits: ArrayLike) -> Interval:
    """A value with the 2.5th and 97.5th percentiles of what bootstrap refits have in its place."""
    low, high = np.percentile(np.asarray(refits, dtype=float), [2.5, 97.5])
    return Interval(value, float(low), float(high))
