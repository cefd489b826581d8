"""Summary of a finished sweep."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Outcome of a sweep. states: how many runs, or configurations, are in each state now.

    done, failed: runs recorded by this sweep. reused, failed_before: recorded earlier and left as they are.
    missing: without a record still, and nobody trains them. elsewhere: without a record too, in training by another process.
    """

    states: Mapping[str, int]
    done: int = 0
    failed: int = 0
    reused: int = 0
    failed_before: int = 0
    missing: int = 0
    elsewhere: int = 0
    interrupted: bool = False

    @classmethod
    def between(
        cls, before: Mapping[str, int], after: Mapping[str, int], waiting: float, *, interrupted: bool = False
    ) -> "Summary":
        """The summary of a sweep of runs, by how many were in each state before and after it."""
        missing = int(min(waiting, after["missing"]))
        return cls(
            states=after,
            done=after["complete"] - before["complete"],
            failed=after["failed"] - before["failed"],
            reused=before["complete"],
            failed_before=before["failed"],
            missing=missing,
            elsewhere=after["missing"] - missing,
            interrupted=interrupted,
        )

    @property
    def total(self) -> int:
        return self.done + self.failed + self.reused + self.failed_before + self.missing + self.elsewhere
