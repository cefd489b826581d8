"""A table as a page, a terminal and a file for a paper show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sheet:
    """One table: what a reader sees, rounded as in the report, and its numbers in full.

    title, caption: what a page says above and below it.
    """

    name: str
    head: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]
    exact: tuple[Mapping[str, Any], ...]
    title: str = ""
    caption: str = ""
