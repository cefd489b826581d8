"""One task of a Slurm array, or of Ray: a worker that works through a queue, and what follows it, until time is short.

    python -m sweeps.launch.task FOLDER

FOLDER is what sweeps.launch.slurm or sweeps.launch.ray_cluster wrote. Told to stop (preempted, or near its time limit), it
saves a checkpoint, puts its run back, and has Slurm start it again; it alone owns that, neither Lightning nor the batch
script. Under Ray the actor that started it starts another.
"""

import json
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.provenance import SLURM, save_diff
from core.runtime.child_process import BRIEF_SPINNING, STOPPED, leave_with_parent
from core.runtime.printable import log_to_stderr, say
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.seals import check_key
from sweeps.launch.machine import share_of_cores
from sweeps.launch.process import queue_of, trainer_of
from sweeps.launch.worker import StopRequestedError, StopSignal, Train, Worker
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import RAY_CPUS, Place, RayPlace
from sweeps.runs.folders import keep_design
from sweeps.runs.liveness import PREEMPTED, Workplace, tasks_of_job
from sweeps.runs.queue import C, Queue
from sweeps.runs.slurm_jobs import SlurmError
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import open_storage
from sweeps.storage.submissions import JOB, STORAGE_FILE

GRACE_S = 20.0  # after SIGTERM; Slurm's KillWait is 30 s by default
RETRY_S = 5.0
ASK_S = 60.0

log = logging.getLogger("sweeps.task")


class TaskWorker(Worker[C]):
    """A worker in an array task. lead_s: of its time limit, what is kept for a checkpoint."""

    patient = True

    def __init__(self, queue: Queue[C], train: Train, stop: StopSignal, lead_s: float) -> None:
        super().__init__(queue, train, lambda **event: None, stop)
        self._lead_s, self._lasted = lead_s, list[float]()
        self._asked, self._ends, self._restarted = float("-inf"), float("inf"), False

    def _may_begin(self) -> bool:
        self._ask()
        if self._restarted:
            log.warning("this task was started elsewhere: leaving")
            return False
        # Whoever is new begins: what is longer than the time limit goes on in pieces.
        left = self._ends - time.monotonic() - self._lead_s
        if not self._lasted or left >= self._queue.expected_s(self._lasted):
            return True
        log.info("%.0f s left: too short for another run", left)
        return False

    def _ask(self) -> None:
        """Learn now and then when the time limit ends, and whether this task was started elsewhere."""
        place = self._queue.workplace.place
        if place is None or time.monotonic() - self._asked < ASK_S:
            return
        self._asked = time.monotonic()
        try:
            mine = [task for task in tasks_of_job(place) if task.name == place.name]
        except SlurmError as error:
            log.warning("Slurm doesn't say how long this task has: %s", error)
            return
        self._restarted = not mine or mine[0].restarts > place.restarts
        left = mine[0].seconds_left if mine else None
        self._ends = float("inf") if left is None else time.monotonic() + left

    def _leave(self, claim: C) -> None:
        self._queue.put_back(claim, PREEMPTED)

    def _work_on(self, claim: C) -> None:
        if marker := os.environ.get(
            "ABLATE_CLAIMED"
        ):  # tells the batch script that this worker may be replaced if it is killed
            Path(marker).write_text(claim.label, encoding="utf-8")
        began = time.monotonic()
        super()._work_on(claim)
        self._lasted.append(time.monotonic() - began)


def work(queue: Queue[Any], train: Train, stop: StopSignal, lead_s: float) -> None:
    """Work through a queue and those that follow it. When work is left behind, have the task started again."""
    while True:
        left_idle = False
        try:
            left_idle = TaskWorker(queue, train, stop, lead_s).work()
        except StopRequestedError:
            log.info("told to stop")
        if (following := queue.following()) is None:
            break
        queue = following
    if (place := queue.workplace.place) is None:
        return
    with suppress(
        StopRequestedError
    ):  # the storage is away, and this process was told to stop: whoever comes next will see
        if not queue.needs_worker(left_idle=left_idle):
            return
    requeue(place, lead_s)


def requeue(place: Place, lead_s: float) -> None:
    """Have Slurm start this task again. While it doesn't answer, stay: it requeues who is preempted."""
    if isinstance(place, RayPlace):
        sys.exit(STOPPED)  # its actor starts another process, unless it is told to stop itself
    patience = Patience(limit_s=lead_s, first_s=RETRY_S, most_s=RETRY_S)
    try:
        done = patience.call(lambda again: slurm_jobs.requeue(place), _no_answer)
    except OutOfPatienceError as error:
        log.error("%s", error)
    else:
        log.info("requeued" if done else "not requeued: Slurm has decided about this task already")


def _no_answer(error: Exception) -> str | None:
    return f"Slurm doesn't requeue this task: {error}" if isinstance(error, SlurmError) else None


def begin(job: dict[str, Any], storage: PatientStorage, workplace: Workplace, stop: StopSignal) -> None:
    """Work through a job: {"operations", "plan", "out", "trainer", "lead_s"}."""
    queue = queue_of(job, storage, workplace)
    keep_design(queue.folder, queue.sweep.design)
    if workplace.place is not None and workplace.place.restarts:
        queue.reconcile()
    work(queue, trainer_of(job["trainer"]), stop, job["lead_s"])


def main(folder: Path, environment: Any = os.environ) -> int:
    """Work through what waits; 2 for a job that can't be read or a storage that can't be used."""
    os.environ.update(BRIEF_SPINNING | os.environ)  # before torch is imported
    log_to_stderr()
    place = Place.of_environment(environment)
    if isinstance(place, RayPlace):
        leave_with_parent(sys.stdin.fileno())
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    grace_s: dict[int, float] = {signal.SIGTERM: GRACE_S, signal.SIGUSR1: max(GRACE_S, job["lead_s"] - 30.0)}
    stop = StopSignal((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), grace_s)
    _leave_slurm(environment)
    try:
        url = (folder / STORAGE_FILE).read_text(encoding="utf-8").strip()
        storage = open_storage(url, Patience.of_environment(stop.check))
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        storage.patience.call(lambda again: save_diff(out), no_space)
        check_key()
        begin(job, storage, Workplace(place), stop)
    except StopRequestedError:  # while it waited for the storage: whoever comes next sees what is left
        if place is not None:
            requeue(place, job["lead_s"])
        return STOPPED
    except (UserError, OutOfPatienceError) as error:
        say(f"ablate: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _leave_slurm(environment: Any) -> None:
    """Hide the job's size from libraries that would take it for theirs. What a record says of the job stays."""
    cores = len(share_of_cores(0, 1))
    import torch

    own = int(environment.get("SLURM_CPUS_ON_NODE") or environment.get(RAY_CPUS) or cores)
    torch.set_num_threads(max(1, min(cores, own)))
    kept = {"SLURM_CONF", *SLURM.values()}
    for name in [name for name in environment if name.startswith("SLURM_") and name not in kept]:
        del environment[name]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
