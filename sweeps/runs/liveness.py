"""Worker liveness: decides from run locks and the states of tasks whether a run is alive, lost or preempted."""

import os
import socket
import time
from collections.abc import Mapping
from enum import Enum
from types import ModuleType
from typing import Any

from optuna.trial import FrozenTrial

from core.errors import UserError
from sweeps.runs import ray_tasks, slurm_jobs
from sweeps.runs.array_tasks import Place, RayPlace, Task
from sweeps.runs.slurm_jobs import SlurmError

PREEMPTED = "preempted"
LOST = "lost: worker died"
MOVED = "lost: Slurm took its worker's node away"
QUEUE_AGE_S = 2.0
# By the attribute of a trial that names the task: what a task is, and the module that knows a job's tasks.
TASKS: Mapping[str, tuple[type[Place], ModuleType]] = {"slurm": (Place, slurm_jobs), "ray": (RayPlace, ray_tasks)}


class Fate(Enum):
    """Fate of the worker of a RUNNING trial whose run's lock is free."""

    ALIVE = "alive"  # or not known to be dead: it is left alone
    DIED = "died"
    MOVED = "moved"  # the scheduler ended it: not the run's fault


class Workplace:
    """Facts about a place where workers run. place: the task of Slurm or Ray that this process is; None elsewhere."""

    def __init__(self, place: Place | None = None) -> None:
        self.place, self._host = place, socket.gethostname()
        self._queues: dict[str, tuple[float, dict[str, Task] | None]] = {}

    def attributes(self) -> dict[str, Any]:
        """Attributes of a trial that identify the worker that claimed it."""
        known = {"pid": os.getpid(), "host": self._host}
        return known if self.place is None else known | {self.place.launcher.lower(): vars(self.place)}

    def fate(self, trial: FrozenTrial) -> Fate:
        """Determine the fate of a trial's worker; the caller holds the run's lock.

        A lock tells surely on one host alone: some cluster file systems don't share locks between hosts, and there Slurm
        or Ray's tasks are asked. Silence proves nothing.
        """
        place = place_of(trial)
        if place is None:
            return Fate.DIED
        here = trial.user_attrs.get("host") == self._host
        queue = self._queue(place)
        if queue is None:
            return Fate.DIED if here else Fate.ALIVE
        task = queue.get(place.name)
        if not here and task is not None and (task.state == "COMPLETING" or task.restarts == place.restarts):
            return Fate.ALIVE
        return Fate.MOVED if task is not None and task.restarts > place.restarts else Fate.DIED

    def is_gone(self, trial: FrozenTrial) -> bool:
        """True if a trial's task was started again, or isn't known any more. The worker may outlive that."""
        place = place_of(trial)
        queue = None if place is None else self._queue(place)
        if place is None or queue is None:
            return False
        task = queue.get(place.name)
        return task is None or task.restarts > place.restarts

    def _queue(self, place: Place) -> dict[str, Task] | None:
        """The tasks of a place's job by name, at most two seconds old; None when they aren't known."""
        job = place.job
        asked, queue = self._queues.get(job, (0.0, None))
        if time.monotonic() - asked > QUEUE_AGE_S or job not in self._queues:
            try:
                queue = {task.name: task for task in tasks_of_job(place)}
            except (SlurmError, UserError):
                queue = None
            self._queues[job] = (time.monotonic(), queue)
        return queue


def place_of(trial: FrozenTrial) -> Place | None:
    """The task whose worker claimed a trial; None where none did."""
    for key, (kind, _) in TASKS.items():
        told: Mapping[str, Any] | None = trial.user_attrs.get(key)
        if told is not None:
            return kind(told["job"], told["task"], told["restarts"])
    return None


def tasks_of_job(place: Place) -> list[Task]:
    """The tasks of a place's job that wait or run. Raises SlurmError, UserError where they aren't known."""
    _, module = TASKS[place.launcher.lower()]
    found: list[Task] = module.tasks(jobs=[place.job])
    return found
