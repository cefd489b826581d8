"""The one error that is the user's to mend."""

from collections.abc import Callable
from typing import Any

LIMITS: dict[str, Callable[[float], bool]] = {
    "be at least 1": lambda value: value >= 1,
    "be positive": lambda value: value > 0,
    "not be negative": lambda value: value >= 0,
    "lie in (0, 1)": lambda value: 0 < value < 1,
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie in [0, 1]": lambda value: 0 <= value <= 1,
}


class UserError(ValueError):
    """A mistake in a config, a declaration or a command: one clear line that says what would be right."""


def require(holds: bool, message: str) -> None:
    """Raise UserError with the message unless it holds."""
    if not holds:
        raise UserError(message)


def require_limit(section: Any, prefix: str, limit: str, *names: str) -> None:
    """Raise UserError for the first of these fields of a section whose number is beyond the limit, one of LIMITS.

    prefix: the section's name, before a field's. None is within every limit.
    """
    for name in names:
        value = getattr(section, name)
        require(value is None or LIMITS[limit](value), f"{prefix}.{name} must {limit}, not {value}")
