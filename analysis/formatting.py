"""Formatting of numbers for people: effects, p-values, shares, ratios."""

import math

import numpy as np

from core.runtime.units import significant


def number(value: float | None) -> str:
    """Four significant digits; nothing for what is missing."""
    return "" if value is None else significant(value, 4)


def signed(value: float | None, margin: float | None = None) -> str:
    """Two significant digits with a sign: effects and their bounds; more where two would put it on or beyond a margin."""
    if value is None:
        return ""
    digits = 2 if margin is None else digits_beside(abs(value), margin)
    return "0" if value == 0 else significant(value, digits, "+").replace("-", "−")


def size(value: float, margin: float | None = None) -> str:
    """An effect's size in words: as `signed`, without the sign."""
    return signed(abs(value), margin).removeprefix("+")


def correlation(value: float) -> str:
    """Two digits; nothing where a side doesn't vary."""
    return "" if math.isnan(value) else fixed(value, 2)


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """So many decimals; 0 has no sign."""
    told = f"{value:{'+' if sign else ''}.{decimals}f}"
    return (told.lstrip("+-") if float(told) == 0 else told).replace("-", "−")


def ratio(value: float) -> str:
    """Two decimals, or as many as it takes not to be 1 where the value isn't."""
    return f"{value:.{decimals_beside(value, 2, 1.0)}f}"


def percent(value: float, sign: bool = True, margin: float | None = None) -> str:
    """A share in per cent with one decimal, or as many as it takes not to be 0 where the value isn't, and on its side of a
    margin."""
    share = 100 * value
    beside = 1 if margin is None else decimals_beside(abs(share), 1, 100 * margin)
    return f"{fixed(share, max(beside, decimals_beside(share, 1, 0.0)), sign)}%"


def pvalue(value: float | None, alpha: float) -> str:
    """Two digits, nothing below 0.0001, and as many more as it takes to be on its own side of alpha: 0.0497, not 0.05."""
    if value is None:
        return ""
    if value < 1e-4 <= alpha:
        return "<.0001"
    return f"{value:.{digits_beside(value, alpha)}g}"


def digits_beside(value: float, limit: float) -> int:
    """Two significant digits, or as many as it takes to be below a limit where the value is, and else not."""
    return next((n for n in range(2, 17) if (float(f"{value:.{n}g}") < limit) == (value < limit)), 17)


def decimals_beside(value: float, least: int, limit: float) -> int:
    """So many decimals, or as many as it takes to be below, at or above a limit where the value is."""
    sides = np.sign(value - limit)
    return next((n for n in range(least, 13) if np.sign(float(f"{value:.{n}f}") - limit) == sides), least)


def coverage(alpha: float) -> str:
    """Heading of an interval's column."""
    return f"{100 * (1 - alpha):g} % interval"
