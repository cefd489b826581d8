"""One worker process of a search: ask, train, tell, until the search is over.

    python -m sweeps.search.training JOB.json

Started as sweeps.runs.worker is, with the same environment, pipes and signals.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError

from core.records import fencing
from core.records import pending_record as spill
from core.records import record as records
from core.records.fencing import FencedOffError
from core.records.record import RunRecord, set_aside
from core.runtime.child_process import STOPPED
from core.runtime.retry import OutOfPatienceError
from core.runtime.units import counted, significant
from core.training.checkpoint_files import saved_step
from core.training.preemption import TrainingPausedError
from sweeps.runs.folders import clean, recorded, rescue, run_folder
from sweeps.runs.progress_log import ProgressLogger, curve_metrics
from sweeps.runs.trials import failed_record
from sweeps.runs.worker import StopRequestedError, StopSignal, Train, serve
from sweeps.search.plan import SearchPlan, described
from sweeps.search.queue import Claim, SearchLedger
from sweeps.search.results import entry_file
from sweeps.search.resume import metrics_at, paused_record
from sweeps.search.tuner import objectives
from sweeps.studies.plan import PlannedRun
from sweeps.tracking.wandb_run import WandbTracker, run_id

POLL_S, MOST_POLL_S = 0.2, 2.0  # between looks at what others' results make possible

log = logging.getLogger("sweeps.search.training")


class SearchWorker:
    """An ask-train-tell loop over one search."""

    def __init__(self, ledger: SearchLedger, train: Train, emit: Callable[..., None], stop: StopSignal) -> None:
        self._ledger, self._train, self._emit, self._stop = ledger, train, emit, stop
        self._tokens = 0.0  # trained for the claim at hand

    def work(self) -> None:
        """Train until the search is over. Raises StopRequestedError when told to stop; what it trained is queued again."""
        pause_s = POLL_S
        while self._may_claim():
            self._stop.check()
            claim, more = self._ledger.claim()
            if claim is not None:
                self._work_on(claim)
                pause_s = POLL_S
            elif more and self._may_wait():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_POLL_S)
            else:
                return

    def _may_claim(self) -> bool:
        """True if something more may be begun here."""
        return True

    def _may_wait(self) -> bool:
        """True if the worker should wait, with nothing to train before others have trained something."""
        return True

    def _work_on(self, claim: Claim) -> None:
        tuner, job = claim.tuner, claim.job
        what = f"trial {job.number}" + (f" ({tuner.group.label})" if tuner.group.label else "")
        until = f" to step {job.until}" if job.until else ""
        self._emit(event="started", text=f"started {what}{until}: {described(job.settings)}")
        self._tokens = 0.0
        try:
            with claim.lock.heeded():
                self._enter(claim)
                self._train_all(claim, what)
        except (StopRequestedError, TrainingPausedError):
            if claim.lock.holds():
                tuner.put_back(job, self._tokens)
            raise StopRequestedError(STOPPED) from None
        except (FencedOffError, UpdateFinishedTrialError) as error:  # its trial is another's to tell of
            log.warning("%s is given up here: %s", what, error)
            self._emit(event="lost", text=f"{what} was taken over by another process while its worker slept")
        finally:
            claim.lock.release()

    def _train_all(self, claim: Claim, what: str) -> None:
        """Every seed of a configuration, and what came of them told to its trial."""
        tuner, job, values = claim.tuner, claim.job, list[list[float]]()
        for place, run in enumerate(self._ledger.plan.runs(job.settings, job.config)):
            with self._stop.interruptible():
                record = self._run(claim, run)
            metrics = metrics_at(record, job.until) or record.metrics
            found = objectives(self._ledger.plan, metrics) if record.status != "failed" else str(record.reason)
            fencing.check(claim.lock.folder)
            if isinstance(found, str):
                self._ledger.note_records(tuner, job)
                tuner.fail(job, self._tokens, found)
                self._emit(event="failed", text=f"failed {what}: seed {run.seed}: {found}")
                return
            values.append(found)
            if self._ledger.plan.search.chosen_pruner == "wilcoxon" and tuner.report_seed(job, place, found[0]):
                self._ledger.note_records(tuner, job)
                tuner.prune(job, self._tokens, f"worse than the best over {counted(place + 1, 'seed')} (Wilcoxon)")
                self._emit(
                    event="paused", text=f"stopped {what}: worse than the best over {counted(place + 1, 'seed')}"
                )
                return
        means = [sum(column) / len(column) for column in zip(*values, strict=True)]
        self._ledger.note_records(tuner, job)
        if job.until is not None:
            tuner.report_rung(job, [value[0] for value in values], self._tokens)
        else:
            tuner.complete(job, means, self._tokens)
        named = zip(self._ledger.plan.design.metrics, means, strict=True)
        said = ", ".join(f"{name} {significant(mean, 4)}" for name, mean in named)
        ended = "paused" if job.until else "finished"
        self._emit(event=ended, text=f"{ended} {what}: {said}")

    def _enter(self, claim: Claim) -> None:
        plan, job = self._ledger.plan, claim.job
        path = self._ledger.arm_folder(job) / entry_file(plan.design.identity)
        entry = {"trial": job.number, "group": claim.tuner.group.label, "settings": dict(job.settings)}
        records.write_atomically(path, json.dumps(entry) + "\n")

    def _run(self, claim: Claim, run: PlannedRun) -> RunRecord:
        """One seed of a configuration, trained to the job's rung; the tokens that this took are counted."""
        plan, job = self._ledger.plan, claim.job
        folder = run_folder(plan.sweep, run, self._ledger.out)
        folder.mkdir(parents=True, exist_ok=True)
        before = rescue(folder, run, self._ledger.patience)
        if before is not None:
            return before
        partial = paused_record(folder, run)
        reached = saved_step(folder) or 0
        if partial is not None and metrics_at(partial, job.until) is not None:
            return partial  # its worker died between training and telling
        if partial is None:
            clean(folder)
        place = plan.place(run, job.number, claim.tuner.group)
        # W&B: one run a rung, since a finished offline run can't be added to.
        attempt = plan.rungs.index(job.until) if job.until else len(plan.rungs) - 1
        tracker = WandbTracker(plan.sweep, run, folder, run_id(run, self._ledger.folder_id, attempt))
        progress = ProgressLogger(
            folder,
            run.config.trainer.steps,
            tokens_per_step=run.config.tokens_per_step,
            keep=curve_metrics(plan.design),
        )
        loggers = [progress, tracker]
        several: dict[str, Any] = {"devices": plan.devices} if plan.devices > 1 else {}
        if job.until is not None:
            several["until"] = job.until
        try:
            record = self._trained(run, folder, loggers, place, several)
        except FencedOffError:
            tracker.drop()
            raise
        except (StopRequestedError, TrainingPausedError):
            tracker.leave() if claim.lock.holds() else tracker.drop()
            saved = max(0, (saved_step(folder) or 0) - reached)  # whoever goes on begins to count there
            self._tokens += saved * plan.design.tokens_per_step
            raise
        tracker.finish(record)
        trained = record.validation.get("tokens") or record.curve.get("tokens") or [0.0]
        self._tokens += max(0.0, trained[-1] - reached * plan.design.tokens_per_step)
        return record

    def _trained(
        self, run: PlannedRun, folder: Path, loggers: list[Any], place: dict[str, Any], several: dict[str, Any]
    ) -> RunRecord:
        """Train, and leave a record whatever happens."""
        try:
            record = self._train(run.config, folder, loggers=loggers, study=place, **several)
        except OutOfPatienceError:
            raise  # it is trained; its record is in the spill folder
        except Exception as error:
            fencing.check(folder)  # it may have stumbled over what its successor did
            log.exception("%s failed", run.label)
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            record = replace(failed_record(self._ledger.plan.sweep, run, reason), study=place)
        return self._kept(record, run, folder, place)

    def _kept(self, record: RunRecord, run: PlannedRun, folder: Path, place: dict[str, Any]) -> RunRecord:
        """The record as it now lies in the folder: a failure when it is of other data than planned."""
        if record.status != "failed" and record.data_fingerprint != run.fingerprint:
            reason = f"data changed: planned {run.fingerprint}, trained on {record.data_fingerprint}"
            record = replace(failed_record(self._ledger.plan.sweep, run, reason), study=place)
        if record.status == "failed" and recorded(folder, run) is None:
            set_aside(folder)
            spill.keep(record, folder)
        return record


def main(arguments: list[str]) -> None:
    """Work through a job file: {"plan", "out", "trainer"}."""
    serve(
        Path(arguments[0]),
        lambda plan, out, storage: SearchLedger(SearchPlan.from_json(plan), out, storage),
        SearchWorker,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
