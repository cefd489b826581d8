"""Worker: claims what a queue has, trains it, records it and tells of it, until nothing is left."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from optuna.exceptions import UpdateFinishedTrialError

from core.config.run import config_hash
from core.data.inputs import fingerprint
from core.records import fencing, pending_record, run_record
from core.records.fencing import FencedOffError
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError, set_aside
from core.runtime.child_process import STOPPED
from core.runtime.retry import OutOfPatienceError
from core.training import preemption
from core.training.checkpoint_files import STAGES
from core.training.preemption import TrainingPausedError
from sweeps.runs.folders import recorded, run_folder
from sweeps.runs.progress import ProgressLogger, curve_metrics
from sweeps.runs.queue import TAKEN_OVER, C, Queue
from sweeps.runs.trials import failed_record
from sweeps.studies.plan import PlannedRun
from sweeps.tracking.wandb_run import WandbTracker, run_id

GRACE_S = 5.0  # for a checkpoint; sweeps.launch.pool waits longer before it kills
Train = Callable[..., RunRecord]

log = logging.getLogger("sweeps.launch.worker")


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
        if number != signal.SIGALRM and preemption.request():
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


class Worker(Generic[C]):
    """A loop over a queue: claim, train, record, tell. emit: takes what happens, as keyword arguments for a JSON line."""

    patient = False  # see Queue.pause

    def __init__(self, queue: Queue[C], train: Train, emit: Callable[..., None], stop: StopSignal) -> None:
        self._queue, self._train, self._emit, self._stop = queue, train, emit, stop

    def work(self) -> bool:
        """Train until nothing is left to claim, or `_may_begin` says no. Returns whether the former was so.

        Raises StopRequestedError when told to stop; what was in training is left to whoever comes next.
        """
        idle_since: float | None = None
        while True:
            self._stop.check()
            if not self._may_begin():
                return False
            claim, busy = self._queue.claim()
            if claim is not None:
                self._work_on(claim)
                idle_since = None
                continue
            now = time.monotonic()
            idle_since = now if idle_since is None else idle_since
            pause_s = self._queue.pause(busy, now - idle_since, patient=self.patient)
            if pause_s is None:
                return True
            time.sleep(pause_s)

    def _may_begin(self) -> bool:
        """True if another claim may be begun here."""
        return True

    def _leave(self, claim: C) -> None:
        self._queue.abandon(claim, "interrupted")

    def _work_on(self, claim: C) -> None:
        self._say(claim, "started", f"started {claim.label}{claim.details}")
        try:
            with claim.lock.heeded():
                for run in claim.runs:
                    with self._stop.interruptible():
                        record, attributes = self._run(claim, run)
                    if not self._queue.report(claim, run, record):
                        break
                ended = self._queue.finish(claim, record, attributes)
        except (StopRequestedError, TrainingPausedError):
            self._leave(claim)
            raise StopRequestedError(STOPPED) from None
        except (FencedOffError, UpdateFinishedTrialError) as error:
            # What was trained here is dropped; the sweep goes on.
            log.warning("%s is given up here: %s", claim.label, error)
            self._queue.abandon(claim, TAKEN_OVER)
            self._say(claim, "lost", f"{claim.label} was taken over by another process while its worker slept")
        else:
            self._say(claim, ended.event, ended.text)
        finally:
            claim.lock.release()

    def _say(self, claim: C, event: str, text: str) -> None:
        log.info("%s in %s", text, claim.lock.folder)
        self._emit(event=event, text=text, label=claim.label, run_hash=claim.run_hash)

    def _run(self, claim: C, run: PlannedRun) -> tuple[RunRecord, dict[str, Any]]:
        """Train one run, mirrored to W&B. Returns its record, and what its trial is to remember beside that."""
        before = self._queue.prepare(claim, run)
        if before is not None:
            return before, {}
        sweep, folder = self._queue.sweep, run_folder(self._queue.sweep, run, self._queue.out)
        tracker = WandbTracker(sweep, run, folder, run_id(run, self._queue.folder_id, claim.attempt))
        try:
            record = self._record(claim, run, folder, tracker)
            tracker.finish(record)
        except (StopRequestedError, TrainingPausedError):
            tracker.leave() if claim.lock.holds() else tracker.drop()
            raise
        except FencedOffError:
            tracker.drop()
            raise
        return record, {"wandb": tracker.status}

    def _record(self, claim: C, run: PlannedRun, folder: Path, tracker: WandbTracker) -> RunRecord:
        """Train, and leave a record whatever happens."""
        sweep, config, study = self._queue.sweep, run.config, self._queue.study_field(claim, run)
        several: dict[str, Any] = {"devices": sweep.devices} if sweep.devices > 1 else {}
        until = {} if claim.until is None else {"until": claim.until}
        keep = curve_metrics(sweep.design)
        progress = ProgressLogger(folder, config.trainer.steps, tokens_per_step=config.tokens_per_step, keep=keep)

        def failed(reason: str) -> RunRecord:
            return replace(failed_record(sweep, run, reason), study=study)

        try:
            reason = self._first_stage(run, folder, several)
            record = (
                failed(reason)
                if reason
                else self._train(config, folder, loggers=[progress, tracker], study=study, **several, **until)
            )
        except (OutOfPatienceError, OutOfReachError):
            raise  # it is trained; its record is in the spill folder, or can't be opened
        except Exception as error:
            fencing.check(folder)  # it may have stumbled over what its successor did
            log.exception("%s failed", run.label)
            record = failed(f"{type(error).__name__}: {error}".strip().splitlines()[0])
        is_paused = record.status == "paused" and record.data_fingerprint == run.fingerprint
        if not is_paused and recorded(folder, run) is None:
            if record.status != "failed":  # of other data than planned: the corpus changed since
                record = failed(f"data changed: planned {run.fingerprint}, trained on {record.data_fingerprint}")
            set_aside(folder)
            pending_record.keep(record, folder)
        return record

    def _first_stage(self, run: PlannedRun, folder: Path, several: Mapping[str, int]) -> str | None:
        """Train a run's first stage where there is one that isn't done. Returns why that failed, or None."""
        config = run.first
        if config is None:
            return None
        stage = folder / STAGES / config_hash(config, with_seed=False)
        try:
            record = run_record.read(stage / run_record.FILE_NAME)
        except (FileNotFoundError, UnreadableRecordError):
            record = None
        if (
            record is None
            or record.status != "complete"
            or record.run_hash != config_hash(config)
            or record.data_fingerprint != fingerprint(config)
        ):
            stage.mkdir(parents=True, exist_ok=True)
            progress = ProgressLogger(folder, config.trainer.steps)
            record = self._train(config, stage, loggers=[progress], study={}, **several)
        return None if record.status == "complete" else f"its first stage failed: {record.reason}"
