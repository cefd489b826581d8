"""history.jsonl of a study: each design that it had and each time that its results were shown.

Lines are added (sweeps.runs.history) and never changed. Studies of versions that kept none have no such file.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.records.designs import CONVERSION_ERRORS, StudyDesign, Whole, parse
from core.runtime import json_files

FILE_NAME = "history.jsonl"
DESIGN, LOOK = "design", "look"  # what a line's "event" says


class HistoryError(ValueError):
    """A history that can't be read as a whole; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """at: when, in UTC, empty where it isn't known; git_commit: of the working tree; recorded: runs that were finished."""

    at: str
    recorded: Whole
    git_commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class DesignEvent(Event):
    """A design was about to be run."""

    design: StudyDesign

    def to_json(self) -> dict[str, Any]:
        content = {"event": DESIGN, "at": self.at, "git_commit": self.git_commit, "recorded": self.recorded}
        return content | {"design": self.design.to_json()}


@dataclass(frozen=True, kw_only=True)
class Look(Event):
    """Results were shown. by: the command; seeds: of the design; winner: of a confirmation, or None."""

    by: str
    seeds: Whole
    winner: str | None = None

    def to_json(self) -> dict[str, Any]:
        content = {"event": LOOK} | asdict(self)
        return content if self.winner is not None else {k: v for k, v in content.items() if k != "winner"}


def read(study: Path) -> list[Event]:
    """The events of a study's folder, oldest first; none where there is no such file. Raises HistoryError."""
    path = study / FILE_NAME
    try:
        lines = json_files.read_lines(path, lambda line: isinstance(line, dict), "event")
        return [_event(line) for line in lines]
    except json_files.DamagedFileError as error:
        raise HistoryError(f"{path.name} {error}") from None
    except CONVERSION_ERRORS:
        raise HistoryError(f"{path.name} is damaged: it holds something that is no event") from None


def designs_of(events: Iterable[Event]) -> list[DesignEvent]:
    """The events at which a design was noted."""
    return [event for event in events if isinstance(event, DesignEvent)]


def _event(line: dict[str, Any]) -> Event:
    if line.get("event") != DESIGN:
        return msgspec.convert(line if line.get("event") == LOOK else None, Look)
    try:
        event = msgspec.convert(line, Event)
        return DesignEvent(**asdict(event), design=parse(line.get("design")))
    except json_files.DamagedFileError as error:
        raise json_files.DamagedFileError(f"is damaged: a design, {error}") from None
