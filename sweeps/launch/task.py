"""One task of a Slurm array: a worker that claims runs until none is left or its time is short.

    python -m sweeps.launch.task FOLDER

FOLDER is what sweeps.launch.slurm wrote. Told to stop (preempted, or near its time limit), it saves a checkpoint, puts its
run back, and has Slurm start it again; it alone owns that, neither Lightning nor the batch script.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.provenance import SLURM, save_diff
from core.runtime.child_process import BRIEF_SPINNING, STOPPED
from core.runtime.printable import log_to_stderr, say
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.signing_key import check_key
from sweeps.launch.machine import share_of_cores
from sweeps.launch.slurm import JOB, quantile
from sweeps.launch.time_limit import Shift
from sweeps.runs import slurm as scheduler
from sweeps.runs.folders import keep_design
from sweeps.runs.ledger import Claim, Ledger
from sweeps.runs.liveness import PREEMPTED, Workplace
from sweeps.runs.slurm import Place, SlurmError
from sweeps.runs.worker import StopRequestedError, StopSignal, Train, Worker, trainer_of
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import open_storage
from sweeps.storage.submissions import STORAGE_FILE
from sweeps.studies.plan import Plan

GRACE_S = 20.0  # after SIGTERM; Slurm's KillWait is 30 s by default
LONG_RUN = 0.9  # quantile of measured durations that has to fit into what is left
LOCK_PATIENCE_S = 120.0  # a file server lets go of a lost node's locks after about 90 s
RETRY_S = 5.0

log = logging.getLogger("sweeps.task")


class TaskWorker(Worker):
    """A worker that knows its place in the cluster."""

    def __init__(self, ledger: Ledger, train: Train, stop: StopSignal, lead_s: float) -> None:
        super().__init__(ledger, train, lambda **event: None, stop)
        self._shift = Shift(ledger.workplace.place, lead_s)
        self._trained = 0
        self._idle_since: float | None = None

    def _has_time(self) -> bool:
        if not self._shift.is_on():
            return False
        durations = self._ledger.durations_s()
        if not self._trained or not durations:  # whoever is new begins: a run longer than the limit goes on in pieces
            return True
        return self._shift.has(quantile(durations, LONG_RUN))

    def _run(self, claim: Claim) -> None:
        note_claim(claim.run.run_hash)
        super()._run(claim)
        self._trained += 1
        self._idle_since = None

    def _let_go(self, claim: Claim) -> None:
        self._ledger.put_back(claim, PREEMPTED)

    def _look_again(self) -> bool:
        """Queue the runs of workers that Slurm has ended, waiting a little for locks that outlive them."""
        self._idle_since = self._idle_since or time.monotonic()
        while True:
            self._ledger.reconcile()
            gone = [trial for trial in self._ledger.running() if self._ledger.workplace.is_gone(trial)]
            waiting = self._ledger.waiting()
            if not (waiting or gone) or time.monotonic() - self._idle_since > LOCK_PATIENCE_S:
                return False
            if waiting:
                time.sleep(0.2)  # if somebody holds the locks of all that wait
                return True
            log.info("waiting for %d runs of workers that Slurm has ended", len(gone))
            self._stop.check()
            time.sleep(RETRY_S)


def note_claim(name: str) -> None:
    """Tell the batch script that this worker has come to train: it may be replaced if it is killed."""
    if marker := os.environ.get("ABLATE_CLAIMED"):
        Path(marker).write_text(name, encoding="utf-8")


def start_again(ledger: Ledger, lead_s: float) -> None:
    """Have Slurm start this task again if runs wait. While Slurm refuses to answer, stay: it requeues who is preempted."""
    place = ledger.workplace.place
    if place is not None and _runs_wait(ledger):
        requeue(place, lead_s)


def requeue(place: Place, lead_s: float) -> None:
    """Ask Slurm until it answers, for as long as that makes sense."""
    deadline = time.monotonic() + lead_s
    while True:
        try:
            done = scheduler.requeue(place)
            log.info("requeued" if done else "not requeued: Slurm has decided about this task already")
            return
        except SlurmError as error:
            log.error("Slurm doesn't requeue this task: %s", error)
        if time.monotonic() > deadline:
            return
        time.sleep(RETRY_S)


def _runs_wait(ledger: Ledger) -> bool:
    try:
        return ledger.waiting() > 0
    except StopRequestedError:  # the storage is away, and this process was told to stop: whoever comes next will see
        return True


def begin_sweep(
    job: dict[str, Any], storage: PatientStorage, workplace: Workplace, stop: StopSignal
) -> Callable[[], None]:
    """The work of a sweep's task: its plan's runs, until none is left."""
    plan, out = Plan.from_json(job["plan"]), Path(job["out"])
    ledger = Ledger(plan, out, storage, workplace)
    keep_design(out / plan.study_name, plan.design)
    if workplace.place is not None and workplace.place.restarts:
        ledger.reconcile()
    worker = TaskWorker(ledger, trainer_of(job["trainer"]), stop, job["lead_s"])
    return lambda: work(worker, ledger, job["lead_s"])


def main(
    folder: Path,
    environment: Any = os.environ,
    begin: Callable[[dict[str, Any], PatientStorage, Workplace, StopSignal], Callable[[], None]] = begin_sweep,
) -> int:
    """Work through what waits; 2 for a job that can't be read or a storage that can't be used."""
    os.environ.update(BRIEF_SPINNING | os.environ)  # before torch is imported
    log_to_stderr()
    place = Place.of_environment(environment)
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
        begin(job, storage, Workplace(place), stop)()
    except StopRequestedError:  # while it waited for the storage: whoever comes next sees what is left
        if place is not None:
            requeue(place, job["lead_s"])
        return STOPPED
    except UserError as error:
        say(f"ablate: {error}", file=sys.stderr)
        return 2
    except OutOfPatienceError as error:
        say(f"ablate: {error}", file=sys.stderr)
        return 1
    return 0


def work(worker: Worker, ledger: Ledger, lead_s: float, again: Callable[[Ledger, float], None] = start_again) -> None:
    """Let the worker work; when it leaves runs behind, have the task started again."""
    try:
        worker.work()
    except StopRequestedError:
        log.info("told to stop")
    again(ledger, lead_s)


def _leave_slurm(environment: Any) -> None:
    """Hide the job's size from libraries that would take it for theirs. What a record says of the job stays."""
    cores = len(share_of_cores(0, 1))
    import torch

    torch.set_num_threads(max(1, min(cores, int(environment.get("SLURM_CPUS_ON_NODE") or cores))))
    kept = {"SLURM_CONF", *SLURM.values()}
    for name in [name for name in environment if name.startswith("SLURM_") and name not in kept]:
        del environment[name]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
