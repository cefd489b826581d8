"""A run's progress file, as whoever watches reads it."""

import json
from pathlib import Path
from typing import Any

PROGRESS_FILE = "progress.json"


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The newest progress of a run; None before its first row."""
    try:
        content = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(content, dict)
    return content
