"""Numbers and verdicts in words, as every page, terminal and file has them."""

import math

from analysis.factorial import Contrast
from analysis.tables import Planned, Row
from core.quantities import significant


def crossed(contrast: Contrast) -> str:
    """A contrast's factors in words: each from its reference to its level."""
    steps = zip(contrast.factors, contrast.reference, contrast.levels, strict=True)
    return " x ".join(f"{name} {base} → {level}" for name, base, level in steps)


def number(value: float | None) -> str:
    """Four significant digits; nothing for what is missing."""
    return "" if value is None else significant(value, 4)


def signed(value: float | None) -> str:
    """Two significant digits with a sign: effects and their bounds."""
    return "" if value is None else significant(value, 2, "+").replace("-", "−")


def correlation(value: float) -> str:
    """Two digits; nothing where a side doesn't vary."""
    return "" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def pvalue(value: float | None) -> str:
    """Two digits, and nothing below 0.0001."""
    return "" if value is None else "<.0001" if value < 1e-4 else f"{value:.2g}"


def kind(row: Row | Planned) -> str:
    """A verdict's first word: what it is coloured by."""
    return row.verdict.split(" ")[0].rstrip(",")
