"""Rows of other programs' logs: what every reader of logs returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogRow:
    """One row. place: where it stands, for messages, such as "runs.csv, row 7". values: by column, as they were read."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """Rows of one source. step, status: the columns that count steps and that say whether a run was finished, where the
    format has them; None: the user names them."""

    source: str
    rows: tuple[LogRow, ...]
    step: str | None = None
    status: str | None = None
