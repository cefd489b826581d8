"""history.jsonl of a study: each design that it had and each time that its results were shown, with when and at which commit.

Lines are added (sweeps.history) and never changed. Studies of versions that kept none have no such file.
"""

import os
from pathlib import Path
from typing import Any

from core import designs, jsonfiles
from core.jsonfiles import is_whole

FILE_NAME = "history.jsonl"
DESIGN, LOOK = "design", "look"


class HistoryError(ValueError):
    """A history that can't be read as a whole; the message says why."""


def read(study: Path) -> list[dict[str, Any]]:
    """The events of a study's folder, oldest first; none where there is no such file. Raises HistoryError."""
    path = study / FILE_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if os.path.lexists(path) else []
        events = [jsonfiles.parse(line) for line in lines]
    except OSError as error:
        raise HistoryError(f"{path.name} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise HistoryError(f"{path.name} is damaged: {error}") from None
    if not all(map(_is_event, events)):
        raise HistoryError(f"{path.name} is damaged: it holds something that is no event")
    return events


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("at"), str) or not is_whole(event.get("recorded")):
        return False
    if event.get("event") == DESIGN:
        return designs.trouble(event.get("design")) is None
    return event.get("event") == LOOK and is_whole(event.get("seeds")) and isinstance(event.get("by"), str)
