"""Time limit of an array task, and a check that Slurm hasn't started it elsewhere."""

import logging
import time

from sweeps.runs import slurm_jobs
from sweeps.runs.slurm_jobs import Place, SlurmError

CHECK_S = 60.0

log = logging.getLogger("sweeps.task")


class Shift:
    """Slurm's information on this task, asked now and then. lead_s: of its time limit, what is kept for a checkpoint."""

    def __init__(self, place: Place | None, lead_s: float) -> None:
        self._place, self._lead_s = place, lead_s
        self._checked, self._ends, self._moved = float("-inf"), float("inf"), False

    def is_on(self) -> bool:
        """True if Slurm hasn't started this task elsewhere."""
        self._ask()
        if self._moved:
            log.warning("Slurm has started this task elsewhere: leaving")
        return not self._moved

    def has(self, seconds: float) -> bool:
        """True if so much time is left."""
        left = self._ends - time.monotonic() - self._lead_s
        if left < seconds:
            log.info("%.0f s left: too short for another run", left)
        return left >= seconds

    def _ask(self) -> None:
        if self._place is None or time.monotonic() - self._checked < CHECK_S:
            return
        self._checked = time.monotonic()
        try:
            mine = [task for task in slurm_jobs.tasks(jobs=[self._place.job]) if task.name == self._place.name]
        except SlurmError as error:
            log.warning("Slurm doesn't say how long this task has: %s", error)
            return
        self._moved = not mine or mine[0].restarts > self._place.restarts
        left = mine[0].seconds_left if mine else None
        self._ends = float("inf") if left is None else time.monotonic() + left
