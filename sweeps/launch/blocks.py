"""Training block by block: an analysis after each block says which runs are wanted next."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from sweeps.launch.launcher import tasks_of
from sweeps.runs.status import Status, status

POLL_S = 10.0


class StalledError(RuntimeError):
    """Runs of a block that are neither recorded nor waiting: another process has them."""


class Analysis(Protocol):
    """An interim analysis: the runs to train before the next one, as (arm, seed); none where all is decided."""

    @property
    def wanted(self) -> Sequence[tuple[str, int]]: ...


A = TypeVar("A", bound=Analysis)


def train_blocks(first: A, analyse: Callable[[], A], train: Callable[[A], int | None]) -> A | int:
    """Train what an analysis wants and analyse again, until nothing is wanted. Returns the last analysis.

    train: trains a block; returns an exit status where the command ends with it, which is returned then. Raises StalledError
    where a block changes nothing.
    """
    found, before = first, None
    while found.wanted:
        if found.wanted == before:
            raise StalledError(
                f"{len(found.wanted)} runs are neither recorded nor waiting: another process trains them, or lost them"
            )
        if (ended := train(found)) is not None:
            return ended
        found, before = analyse(), found.wanted
    return found


def wait(study: str, out: Path, storage_url: str, on_change: Callable[[Status], None]) -> None:
    """Wait until no run of a study is queued or in training. Whoever ends this process leaves the jobs as they are."""
    before = None
    while True:
        now = status(study, out, storage_url, tasks_of=tasks_of)
        if not now.is_under_way or (now.tasks == () and not now.of("running")):
            return
        seen = (
            Counter((task.state, task.reason) for task in now.tasks or ()),
            now.silence,
        )  # not the time that they have left
        if seen != before:
            on_change(now)
        before = seen
        time.sleep(POLL_S)
