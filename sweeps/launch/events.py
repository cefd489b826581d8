"""Events and summary of a launcher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps.studies.plan import PlannedRun


@dataclass(frozen=True)
class Event:
    """Something that happened to a sweep. text: one line for people.

    kind "planned" comes first; "lost" is a dead worker's run that is queued again, or one that
    another process has.
    """

    kind: Literal["planned", "started", "finished", "failed", "lost", "message"]
    text: str
    run: PlannedRun | None = None
    folder: Path | None = None
    to_train: int | None = None  # with "planned"


@dataclass(frozen=True)
class Summary:
    """Counts of a plan's runs by outcome.

    done, failed: recorded by this sweep. reused, failed_before: recorded earlier and left as they are.
    missing: without a record still, and nobody trains them. elsewhere: without a record too, in training by another process.
    """

    done: int
    failed: int
    reused: int
    failed_before: int
    missing: int
    elsewhere: int = 0
    interrupted: bool = False

    @property
    def total(self) -> int:
        return self.done + self.failed + self.reused + self.failed_before + self.missing + self.elsewhere
