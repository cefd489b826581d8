"""Worker liveness: decides from run locks and Slurm states whether a run is alive, lost or preempted."""

import os
import socket
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any

from optuna.trial import FrozenTrial

from core.errors import UserError
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Place, Task
from sweeps.runs.slurm_jobs import SlurmError

PREEMPTED = "preempted"
LOST = "lost: worker died"
MOVED = "lost: Slurm took its worker's node away"
QUEUE_AGE_S = 2.0


class Fate(Enum):
    """Fate of the worker of a RUNNING trial whose run's lock is free."""

    ALIVE = "alive"  # or not known to be dead: it is left alone
    DIED = "died"
    MOVED = "moved"  # the scheduler ended it: not the run's fault


class Workplace:
    """Facts about a place where workers run. place: the Slurm array task that this process is; None elsewhere."""

    def __init__(self, place: Place | None = None) -> None:
        self.place, self._host = place, socket.gethostname()
        self._queues: dict[str, tuple[float, dict[str, Task] | None]] = {}

    def attributes(self) -> dict[str, Any]:
        """Attributes of a trial that identify the worker that claimed it."""
        known = {"pid": os.getpid(), "host": self._host}
        return known if self.place is None else known | {"slurm": vars(self.place)}

    def fate(self, trial: FrozenTrial) -> Fate:
        """Determine the fate of a trial's worker; the caller holds the run's lock.

        A lock tells surely on one host alone: some cluster file systems don't share locks between hosts, and there Slurm
        is asked. Its silence proves nothing.
        """
        place = place_of(trial)
        if place is None:
            return Fate.DIED
        here = trial.user_attrs.get("host") == self._host
        queue = self._queue(place.job)
        if queue is None:
            return Fate.DIED if here else Fate.ALIVE
        task = queue.get(place.name)
        if not here and task is not None and (task.state == "COMPLETING" or task.restarts == place.restarts):
            return Fate.ALIVE
        return Fate.MOVED if task is not None and task.restarts > place.restarts else Fate.DIED

    def is_gone(self, trial: FrozenTrial) -> bool:
        """True if Slurm has started a trial's task again, or doesn't know it any more. The worker may outlive that."""
        place = place_of(trial)
        queue = None if place is None else self._queue(place.job)
        if place is None or queue is None:
            return False
        task = queue.get(place.name)
        return task is None or task.restarts > place.restarts

    def _queue(self, job: str) -> dict[str, Task] | None:
        """A job's tasks by name, at most two seconds old; None when Slurm doesn't say."""
        asked, queue = self._queues.get(job, (0.0, None))
        if time.monotonic() - asked > QUEUE_AGE_S or job not in self._queues:
            try:
                queue = {task.name: task for task in slurm_jobs.tasks(jobs=[job])}
            except (SlurmError, UserError):
                queue = None
            self._queues[job] = (time.monotonic(), queue)
        return queue


def place_of(trial: FrozenTrial) -> Place | None:
    """The Slurm task whose worker claimed a trial; None where none did."""
    told: Mapping[str, Any] | None = trial.user_attrs.get("slurm")
    return None if told is None else Place(told["job"], told["task"], told["restarts"])
