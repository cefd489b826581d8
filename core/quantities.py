"""Large numbers as people say them."""

from core.errors import UserError

UNITS = {"T": 1e12, "G": 1e9, "B": 1e9, "M": 1e6, "k": 1e3}


def short(value: float) -> str:
    """Three digits and a letter: 10.8k, 1.4G; powers of ten beyond the letters."""
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * unit <= value < 999.5e12:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def from_short(text: str, named: str) -> float:
    """The number that `10.5k`, `500B`, `20T` or `1e12` says. Raises UserError, which calls it `named`."""
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{named} must be a positive number, such as 500B or 20T, not '{text}'")
    return value
