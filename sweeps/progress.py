"""A run's progress file, as whoever watches reads it."""

import json
import time
from pathlib import Path
from typing import Any

from core.quantities import duration

PROGRESS_FILE = "progress.json"
LINE_S = 30.0  # between lines in a log that say how far a run is
CLOCK = "%H:%M:%S"


class Pace:
    """Time that a run will still take, by the steps since the first one that was told."""

    def __init__(self, steps: int) -> None:
        self._steps, self._first = steps, (0, 0.0)

    def left(self, step: int) -> str:
        """As the end of a line; empty where it can't be told yet."""
        now = time.monotonic()
        if self._first == (0, 0.0):
            self._first = (step, now)
        since, began = self._first
        return (
            f", about {duration((now - began) * (self._steps - step) / (step - since))} left"
            if since < step < self._steps
            else ""
        )


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The newest progress of a run; None before its first row."""
    try:
        content = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(content, dict)
    return content
