"""Roots of functions of one variable."""

from collections.abc import Callable


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of an increasing function between two non-negative numbers, to 12 digits.

    By bisection: scipy.optimize takes longer to import than this takes to run.
    """
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) >= 0 else (middle, high)
    return high
