"""history.jsonl of a study: each design that it had and each time that its results were shown, with when and at which commit.

Lines are added (sweeps.runs.history) and never changed. Studies of versions that kept none have no such file.
"""

from pathlib import Path
from typing import Any

from core.records import design as designs
from core.runtime import json_files as jsonfiles
from core.runtime.json_files import is_whole

FILE_NAME = "history.jsonl"
DESIGN, LOOK = "design", "look"


class HistoryError(ValueError):
    """A history that can't be read as a whole; the message says why."""


def read(study: Path) -> list[dict[str, Any]]:
    """The events of a study's folder, oldest first; none where there is no such file. Raises HistoryError."""
    path = study / FILE_NAME
    try:
        return jsonfiles.read_lines(path, _is_event, "event")
    except jsonfiles.DamagedFileError as error:
        raise HistoryError(f"{path.name} {error}") from None


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("at"), str) or not is_whole(event.get("recorded")):
        return False
    if event.get("event") == DESIGN:
        return designs.trouble(event.get("design")) is None
    return event.get("event") == LOOK and is_whole(event.get("seeds")) and isinstance(event.get("by"), str)
