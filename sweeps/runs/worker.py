"""One worker process: claim a run, train it, record it, tell of it, until none is left.

    python -m sweeps.runs.worker JOB.json

Its parent starts it, or has it forked by core.runtime.fork_template, with the storage's URL in ABLATE_STORAGE (it may hold a
password, so it isn't in the job file), its CPU cores as a JSON list in ABLATE_CORES, a pipe on stdin whose end tells that the
parent is gone, a pipe on stdout for events (JSON lines), and its log as stderr.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.config.run import RunConfig, config_hash
from core.errors import UserError
from core.records import fencing
from core.records import pending_record as spill
from core.records import record as records
from core.records.fencing import FencedOffError
from core.records.inputs import fingerprint
from core.records.provenance import save_diff
from core.records.record import OutOfReachError, RunRecord, UnreadableRecordError, set_aside
from core.runtime.child_process import STOPPED, import_here, leave_with_parent, take_events_pipe
from core.runtime.printable import log_to_stderr
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training import preemption as pausing
from core.training.checkpoint_files import STAGES
from core.training.preemption import TrainingPausedError
from core.training.signing_key import check_key
from sweeps.runs.folders import recorded
from sweeps.runs.ledger import TAKEN_OVER, Claim, Ledger
from sweeps.runs.progress_log import ProgressLogger, curve_metrics
from sweeps.runs.trials import failed_record
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import STORAGE_VARIABLE, open_storage
from sweeps.studies.plan import Plan
from sweeps.tracking.wandb_run import WandbTracker, run_id

CORES_VARIABLE = "ABLATE_CORES"
TRAINER = "core.training.run:train"
PATIENCE_S = 5.0
GRACE_S = 5.0  # for a checkpoint; sweeps.launch.pool waits longer before it kills
Train = Callable[..., RunRecord]
L = TypeVar("L")

log = logging.getLogger("sweeps.runs.worker")


class StopRequestedError(SystemExit):
    """SIGTERM or SIGINT came. Not an Exception: training must not take it for a failure of the run."""


class StopSignal:
    """Turns SIGTERM and SIGINT into StopRequestedError, at once while a run trains and else when it next begins.

    Claims and tells are thus never cut in half. A training that can save a checkpoint first is given `grace_s` to do so.
    """

    def __init__(
        self, numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT), grace_s: Mapping[int, float] | None = None
    ) -> None:
        self._requested, self._interruptible, self._grace_s = False, False, grace_s or {}
        for number in (*numbers, signal.SIGALRM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._requested = True
        if not self._interruptible:
            return
        if number != signal.SIGALRM and pausing.request():
            if signal.getitimer(signal.ITIMER_REAL)[0] == 0:  # a second signal shortens nothing
                signal.setitimer(signal.ITIMER_REAL, self._grace_s.get(number, GRACE_S))
            return
        self._interruptible = False
        raise StopRequestedError(STOPPED)

    def check(self) -> None:
        """Raise if a stop was requested."""
        if self._requested:
            raise StopRequestedError(STOPPED)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a stop take effect at once inside."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False
            signal.setitimer(signal.ITIMER_REAL, 0)


class Worker:
    """A claim-train-record loop over the runs of one plan."""

    def __init__(self, ledger: Ledger, train: Train, emit: Callable[..., None], stop: StopSignal) -> None:
        self._ledger, self._train, self._emit, self._stop = ledger, train, emit, stop

    def work(self) -> None:
        """Train runs until none waits. Raises StopRequestedError when told to stop; that run is left to be redone."""
        patience = time.monotonic() + PATIENCE_S
        while True:
            self._stop.check()
            if not self._has_time():
                return
            claim, busy = self._ledger.claim()
            if claim is not None:
                self._run(claim)
                patience = time.monotonic() + PATIENCE_S
            elif busy and time.monotonic() < patience:
                time.sleep(0.1)  # another process is deciding about the last ones
            elif not self._look_again():
                return

    def _has_time(self) -> bool:
        """True if another run may be begun here."""
        return True

    def _look_again(self) -> bool:
        """True if runs were found after none had been waiting."""
        return False

    def _let_go(self, claim: Claim) -> None:
        """Leave a run that was stopped to whoever trains it next."""
        self._ledger.abandon(claim, "interrupted")

    def _run(self, claim: Claim) -> None:
        self._emit(event="started", run_hash=claim.run.run_hash)
        log.info("started %s in %s", claim.run.label, claim.folder)
        tracker: WandbTracker | None = None
        try:
            with claim.lock.heeded(), self._stop.interruptible():
                fencing.check(claim.folder)
                tracker = WandbTracker(
                    self._ledger.plan, claim.run, claim.folder, run_id(claim.run, self._ledger.folder_id, claim.attempt)
                )
                record = self._record(claim, tracker)
                tracker.finish(record)
        except (StopRequestedError, TrainingPausedError):
            if tracker is not None:
                tracker.leave() if claim.lock.holds() else tracker.drop()
            self._let_go(claim)
            raise StopRequestedError(STOPPED) from None
        except FencedOffError as error:
            if tracker is not None:
                tracker.drop()
            self._give_way(claim, error)
            return
        self._ledger.finish(claim, record, {"wandb": tracker.status})
        log.info("%s %s%s", record.status, claim.run.label, f": {record.reason}" if record.reason else "")
        self._emit(event="finished", run_hash=claim.run.run_hash, status=record.status, reason=record.reason)

    def _give_way(self, claim: Claim, error: FencedOffError) -> None:
        """Leave a run to the process that took it over: what was trained here is dropped, and the sweep goes on."""
        log.warning("%s is given up here: %s", claim.run.label, error)
        self._ledger.abandon(claim, TAKEN_OVER)
        self._emit(event="taken over", run_hash=claim.run.run_hash)

    def _first(self, claim: Claim, several: Mapping[str, int]) -> str | None:
        """Train a run's first stage where there is one that isn't done; why that failed, or None."""
        config = claim.run.first
        if config is None:
            return None
        folder = claim.folder / STAGES / config_hash(config, with_seed=False)
        try:
            record = records.read(folder / records.FILE_NAME)
        except (FileNotFoundError, UnreadableRecordError):
            record = None
        if record is None or record.status != "complete" or not _is_of(record, config):
            folder.mkdir(parents=True, exist_ok=True)
            progress = ProgressLogger(claim.folder, config.trainer.steps)
            record = self._train(config, folder, loggers=[progress], study={}, **several)
        return None if record.status == "complete" else f"its first stage failed: {record.reason}"

    def _record(self, claim: Claim, tracker: WandbTracker) -> RunRecord:
        """Train, and leave a record whatever happens."""
        config, keep = claim.run.config, curve_metrics(self._ledger.plan.design)
        progress = ProgressLogger(claim.folder, config.trainer.steps, tokens_per_step=config.tokens_per_step, keep=keep)
        loggers = [progress, tracker]
        place = self._ledger.plan.place(claim.run)
        several = {"devices": self._ledger.plan.devices} if self._ledger.plan.devices > 1 else {}
        try:
            reason = self._first(claim, several)
            record = (
                failed_record(self._ledger.plan, claim.run, reason)
                if reason
                else self._train(config, claim.folder, loggers=loggers, study=place, **several)
            )
        except (OutOfPatienceError, OutOfReachError):
            raise  # it is trained; its record is in the spill folder, or can't be opened
        except Exception as error:
            fencing.check(claim.folder)  # it may have stumbled over what its successor did
            log.exception("%s failed", claim.run.label)
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            record = failed_record(self._ledger.plan, claim.run, reason)
        if recorded(claim.folder, claim.run) is None:
            if record.status == "complete":  # of other data than planned: the corpus changed since
                reason = f"data changed: planned {claim.run.fingerprint}, trained on {record.data_fingerprint}"
                record = failed_record(self._ledger.plan, claim.run, reason)
            set_aside(claim.folder)
            spill.keep(record, claim.folder)
        return record


def _is_of(record: RunRecord, config: RunConfig) -> bool:
    return record.run_hash == config_hash(config) and record.data_fingerprint == fingerprint(config)


def trainer_of(name: str) -> Train:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    train: Train = getattr(import_here(module), function)
    return train


def main(arguments: list[str]) -> None:
    """Work through a job file: {"plan", "out", "trainer"}."""
    serve(
        Path(arguments[0]),
        lambda plan, out, storage: Ledger(Plan.from_json(plan), out, storage),
        Worker,
    )


def serve(
    path: Path, ledger_of: Callable[[dict[str, Any], Path, PatientStorage], L], worker_of: Callable[..., Any]
) -> None:
    """Start as its parent says, and work through a job file with a ledger of its plan and a worker of that ledger."""
    emit = take_events_pipe()
    leave_with_parent(sys.stdin.fileno())
    stop = StopSignal()
    log_to_stderr()
    job = json.loads(path.read_text(encoding="utf-8"))
    cores = json.loads(os.environ[CORES_VARIABLE])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    train = trainer_of(job["trainer"])
    if "torch" in sys.modules:  # what the trainer needs was imported with it
        sys.modules["torch"].set_num_threads(len(cores))
    try:
        storage = open_storage(os.environ[STORAGE_VARIABLE], Patience.of_environment(stop.check))
        out = Path(job["out"])
        ledger = ledger_of(job["plan"], out, storage)
        storage.patience.call(lambda again: save_diff(out), no_space)
        check_key()
        worker_of(ledger, train, emit, stop).work()
    except (OutOfPatienceError, UserError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
