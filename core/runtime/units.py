"""Large numbers and lengths of time as people say them; and measured numbers in order, ties left as they came."""

import itertools
import math
import re
from collections.abc import Sequence

from core.errors import UserError

# Not humanize: it writes 1.40 G and "3 hours" for 1.4G and 3.2 h, and has no number parser for what people write.
NUMERAL = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)

LARGEST_PLAIN = 1e6  # numbers from here on are powers of ten

TIE = 1e-9  # of a measured value: two that differ by less differ by rounding, which another processor does otherwise

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def ranked(values: Sequence[float]) -> list[int]:
    """Places of values from the smallest on; of values that are equal but for rounding, the first come first."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    groups = [order[:1]]
    for before, place in itertools.pairwise(order):
        if below(values[before], values[place]):
            groups.append([])
        groups[-1].append(place)
    return [place for group in groups for place in sorted(group)]


def below(value: float, other: float) -> bool:
    """True if a value is smaller than another by more than rounding."""
    return value < other and not math.isclose(value, other, rel_tol=TIE)


def short(value: float) -> str:
    """Three digits and a letter: 10.8k, 1.4G; powers of ten beyond the letters."""
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * unit <= value < 999.5e12:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def significant(value: float, digits: int, sign: str = "") -> str:
    """So many significant digits as people write them: 420 and 4.1e-5, not 4.2e+02 and 4.1e-05. sign: "+" shows that too."""
    shown = f"{value:{sign}.{digits}g}"
    if "e" not in shown:
        return shown
    rounded = float(shown)
    if 1 <= abs(rounded) < LARGEST_PLAIN:
        return f"{rounded:{sign}.0f}"
    mantissa, exponent = shown.split("e")
    return f"{mantissa}e{int(exponent)}"


def counted(count: int, one: str) -> str:
    """A number of things: 1 seed, 2 seeds."""
    return f"{count} {one}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def parse(text: str) -> float:
    """The number that a person writes so: 500B, 10T, 1.5e12. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([kKmMbBgGtT]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"'{text}' is not a number of tokens: write it as 500B, 10T or 1.5e12")
    return float(match[1]) * UNITS[match[2].lower()]
