"""Queue of search trials shared by concurrent workers.

As in sweeps.runs.ledger, records are the truth. The search's lock orders decisions (what to train next); a configuration's
lock is held from before its trial is RUNNING until after it is told, so whoever gets it and finds the trial RUNNING knows
that its worker is dead.
"""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from core.errors import UserError
from core.records import fencing, run_record
from core.records.run_record import RunRecord, set_aside
from core.runtime.retry import no_space
from core.runtime.units import counted, significant
from core.training.checkpoint_files import saved_step
from sweeps.runs.folders import RunLock, clean, leave, locked, recorded, rescue, run_folder
from sweeps.runs.ledger import Ledger
from sweeps.runs.liveness import LOST, Fate, Workplace
from sweeps.runs.queue import Claim, Ended, Lost, Queue
from sweeps.runs.trials import failed_record, keep_to_folder
from sweeps.search.plan import SearchPlan, described
from sweeps.search.results import Results, confirmation, entry_file
from sweeps.search.rungs import metrics_at, paused_record
from sweeps.search.spec import arm_name
from sweeps.search.tuner import Job, Tuner, objectives
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import PlannedRun

LOCK = ".search.lock"
MOST_LOSSES = 2
MOST_DEATHS = 20  # of workers, in one call
POLL_S, MOST_POLL_S = 0.2, 2.0  # between looks at what others' results make possible
IDLE_S = 600.0  # once nothing new is drawn: a cluster's worker with nothing to train for so long gives its place back
SIGHT_S, RETRY_S = 120.0, 5.0  # for the records of other hosts to be seen on this one; between looks


@dataclass(kw_only=True)
class SearchClaim(Claim):
    """A configuration that this process alone trains, until it is told or released.

    values: of the seeds trained so far, one for each objective. ended: why no further seed is trained, as the event and the
    reason. tokens: trained for this claim. training: the folder of the run in training; reached: its step when it began.
    """

    tuner: Tuner
    job: Job
    values: list[list[float]] = field(default_factory=list)
    ended: tuple[str, str] | None = None
    tokens: float = 0.0
    training: Path | None = None
    reached: int = 0


class SearchLedger(Queue[SearchClaim]):
    """The trials of one search. Raises UserError when the storage's studies belong to another folder of runs."""

    most_deaths = MOST_DEATHS

    def __init__(
        self,
        plan: SearchPlan,
        out: Path,
        storage: PatientStorage,
        workplace: Workplace = Workplace(),  # noqa: B008  (this machine)
    ) -> None:
        self.plan, self.sweep, self.out, self._storage, self.workplace = plan, plan, out, storage, workplace
        self.patience = storage.patience
        self.folder = out / plan.study_name
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK):
            self.tuners = [Tuner(plan, group, storage, workplace) for group in plan.groups]
            for tuner in self.tuners:
                self.folder_id = keep_to_folder(tuner.study, out, plan.search.question)

    def claim(self) -> tuple[SearchClaim | None, bool]:
        """Claim the next job, of the group that has had least.

        Returns it, or None and whether a configuration is in training whose outcome may make another go on. When
        neither is so, the search is over and paused configurations are told so.
        """
        with locked(self.folder / LOCK):
            for tuner in self.tuners:
                self._reconcile(tuner)
            for tuner in sorted(self.tuners, key=lambda tuner: (len(tuner.trained()), tuner.tokens())):
                job = tuner.next()
                if job is None:
                    continue
                lock = RunLock(self.arm_folder(job))
                if lock.acquire():
                    self.patience.call(lambda again: lock.take(), no_space)  # noqa: B023  (called at once)
                    # W&B: one run a rung, since a finished offline run can't be added to.
                    attempt = self.plan.rungs.index(job.until) if job.until else len(self.plan.rungs) - 1
                    until = f" to step {job.until}" if job.until else ""
                    return SearchClaim(
                        label=tuner.label(job.number), details=f"{until}: {described(job.settings)}", lock=lock, job=job,
                        runs=self.plan.runs_of(job.settings, job.config), attempt=attempt, until=job.until, tuner=tuner,
                    ), True  # fmt: skip
                tuner.release(job.trial_id)
                return None, True  # another sweep of this folder, on another storage, trains the same configuration
            if any(tuner.trials(TrialState.RUNNING) for tuner in self.tuners):
                return None, True
            for tuner in self.tuners:
                tuner.finish()
        return None, False

    def prepare(self, claim: SearchClaim, run: PlannedRun) -> RunRecord | None:
        """Make a run's folder ready; returns the record of one that was trained this far already."""
        if run is claim.runs[0]:
            path = self.arm_folder(claim.job) / entry_file(self.plan.design.identity)
            entry = {"trial": claim.job.number, "group": claim.tuner.group.label, "settings": dict(claim.job.settings)}
            run_record.write_atomically(path, json.dumps(entry) + "\n")
        folder = run_folder(self.sweep, run, self.out)
        folder.mkdir(parents=True, exist_ok=True)
        before = rescue(folder, run, self.patience)
        if before is not None:
            return before
        partial = paused_record(folder, run)
        if partial is not None and metrics_at(partial, claim.until) is not None:
            return partial  # its worker died between training and telling
        claim.reached = saved_step(folder) or 0
        if partial is None:
            clean(folder)
        claim.training = folder
        return None

    def study_field(self, claim: SearchClaim, run: PlannedRun) -> dict[str, Any]:
        return self.plan.trial_field(run, claim.job.number, claim.tuner.group)

    def report(self, claim: SearchClaim, run: PlannedRun, record: RunRecord) -> bool:
        """Take note of a seed's record. Returns whether the next seed is to be trained."""
        if claim.training is not None:
            trained = record.validation.get("tokens") or record.curve.get("tokens") or [0.0]
            claim.tokens += max(0.0, trained[-1] - claim.reached * self.plan.design.tokens_per_step)
            claim.training = None
        metrics = metrics_at(record, claim.until) or record.metrics
        found = objectives(self.plan, metrics) if record.status != "failed" else str(record.reason)
        fencing.check(claim.lock.folder)
        if isinstance(found, str):
            claim.ended = "failed", found
            return False
        claim.values.append(found)
        wilcoxon = self.plan.search.chosen_pruner == "wilcoxon"
        if wilcoxon and claim.tuner.report_seed(claim.job, len(claim.values) - 1, found[0]):
            claim.ended = "paused", f"worse than the best over {counted(len(claim.values), 'seed')}"
        return claim.ended is None

    def finish(self, claim: SearchClaim, record: RunRecord, attributes: Mapping[str, Any]) -> Ended:
        """Tell the trial what its seeds came to. record: the last seed's."""
        tuner, job = claim.tuner, claim.job
        self.note_records(tuner, job)
        if claim.ended is not None:
            event, reason = claim.ended
            if event == "failed":
                tuner.fail(job, claim.tokens, reason)
                return Ended(event, f"failed {claim.label}: seed {record.seed}: {reason}")
            tuner.prune(job, claim.tokens, f"{reason} (Wilcoxon)")
            return Ended(event, f"stopped {claim.label}: {reason}")
        means = [sum(column) / len(column) for column in zip(*claim.values, strict=True)]
        if job.until is not None:
            tuner.report_rung(job, [value[0] for value in claim.values], claim.tokens)
        else:
            tuner.complete(job, means, claim.tokens)
        named = zip(self.plan.design.metrics, means, strict=True)
        event = "paused" if job.until else "finished"
        return Ended(event, f"{event} {claim.label}: {', '.join(f'{name} {significant(m, 4)}' for name, m in named)}")

    def put_back(self, claim: SearchClaim, reason: str) -> None:
        """Release a configuration to whoever trains it next, unless another process has it."""
        if claim.training is not None:
            saved = max(0, (saved_step(claim.training) or 0) - claim.reached)  # whoever goes on begins to count there
            claim.tokens += saved * self.plan.design.tokens_per_step
        if claim.lock.holds():
            with contextlib.suppress(UpdateFinishedTrialError):
                claim.tuner.put_back(claim.job, claim.tokens)

    abandon = put_back  # any worker may go on with it

    def pause(self, busy: bool, idle_s: float, *, patient: bool) -> float | None:
        """Seconds to wait before the next claim, twice as long each time; None once nothing can come."""
        if not busy:
            return None
        if patient and idle_s > IDLE_S and all(tuner.is_closed() for tuner in self.tuners):
            return None  # others train what is left
        return min(idle_s + POLL_S, MOST_POLL_S)

    def expected_s(self, lasted: Sequence[float]) -> float:
        """Seconds that the next claim takes at least."""
        return min(lasted)

    def waiting(self) -> float:
        """Infinite until the search is over: what is drawn next depends on what comes of the others."""
        return 0 if self.is_over() else math.inf

    def needs_worker(self, *, left_idle: bool) -> bool:
        """True if configurations are left, and the last worker didn't leave them to others."""
        return not left_idle and not self.is_over()

    def following(self) -> Ledger | None:
        """The queue of the runs that confirm the best, once the search is over.

        Raises UserError where nothing was trained to the end, and where records that the ledger knows can't be seen.
        """
        if not self.is_over():
            return None
        told = self.complete_arms()
        if not told:
            raise UserError("no configuration was trained to the end, so there is nothing to confirm")
        deadline = time.monotonic() + SIGHT_S
        while True:
            # A file server may show other hosts' files late, and whoever sees fewer would confirm something else.
            results = Results.load(self.folder, self.plan.design)
            if results is not None and told <= {found.arm for found in results.complete}:
                break
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.folder}: records of configurations that the ledger knows as complete aren't there"
                )
            time.sleep(RETRY_S)
        plan = confirmation(self.plan, results)
        ledger = Ledger(plan, self.out, self._storage, self.workplace)
        ledger.start(plan.design)
        return ledger

    def is_over(self) -> bool:
        """True if nothing is left to train, wait for, or decide about."""
        states = (TrialState.RUNNING, TrialState.WAITING)
        return all(tuner.is_closed() and not tuner.trials(*states) for tuner in self.tuners)

    def complete_arms(self) -> set[str]:
        """The folders' names of all configurations that are trained to the end."""
        complete = [trial for tuner in self.tuners for trial in tuner.trials(TrialState.COMPLETE)]
        return {arm_name(trial.user_attrs["arm"]) for trial in complete}

    def arm_folder(self, job: Job) -> Path:
        """Folder of a configuration's runs."""
        return self.folder / self.plan.runs_of(job.settings, job.config)[0].arm

    def reconcile(self, *, retry_failed: bool = False) -> list[Lost]:
        """Queue again what dead workers were training, and with `retry_failed` what failed."""
        with locked(self.folder / LOCK):
            lost = [lost for tuner in self.tuners for lost in self._reconcile(tuner)]
            for tuner in self.tuners if retry_failed else ():
                self._retry(tuner)
        return lost

    def queue_again(self, *, retry_failed: bool) -> str:
        with locked(self.folder / LOCK):
            lost = sum(not lost.gave_up for tuner in self.tuners for lost in self._reconcile(tuner))
            failed = sum(self._retry(tuner) for tuner in self.tuners) if retry_failed else 0
        return f"{self.plan.study_name}: {failed} failed and {lost} lost configurations queued again"

    def _retry(self, tuner: Tuner) -> int:
        """Queue again each configuration that failed, its records of failure set aside."""
        found = 0
        for trial in tuner.trained():
            if trial.state != TrialState.FAIL:
                continue
            job = tuner.job(trial)
            lock = RunLock(self.arm_folder(job))
            if not lock.acquire():
                continue  # another sweep of this folder trains it
            try:
                runs = self.plan.runs_of(job.settings, job.config)
                places = [run_folder(self.plan, run, self.out) for run in runs]
                known = [recorded(folder, run) for folder, run in zip(places, runs, strict=True)]
                if all(record is not None and record.status == "complete" for record in known):
                    continue  # without a finite value, and it would get none now
                for folder, record in zip(places, known, strict=True):
                    if record is not None and record.status == "failed":
                        set_aside(folder)
                tuner.retry(trial)
                found += 1
            finally:
                lock.release()
        return found

    def _reconcile(self, tuner: Tuner) -> list[Lost]:
        """Queue again what a dead worker was training: it goes on from its last checkpoint."""
        found = []
        for trial in tuner.trials(TrialState.RUNNING):
            if "arm" not in trial.user_attrs:  # its process died while it was drawn
                self._storage.set_trial_user_attr(trial._trial_id, "reason", "lost while it was drawn")
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                continue
            lock = RunLock(self.folder / arm_name(trial.user_attrs["arm"]))
            if not lock.acquire():
                continue
            try:
                found += self._settle(tuner, trial, lock)
            finally:
                lock.release()
        return found

    def _settle(self, tuner: Tuner, trial: FrozenTrial, lock: RunLock) -> list[Lost]:
        """Decide about a trial whose lock is held."""
        if self._storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return []  # told while its lock was being asked for
        fate = self.workplace.fate(trial)
        if fate is Fate.ALIVE:
            return []
        self.patience.call(lambda again: lock.take(), no_space)  # a worker that lives after all leaves nothing more
        count = "losses" if fate is Fate.DIED else "moved"
        times = trial.user_attrs.get(count, 0) + 1
        self._storage.set_trial_user_attr(trial._trial_id, count, times)
        if fate is Fate.MOVED or times <= MOST_LOSSES:
            tuner.release(trial._trial_id)
            return [Lost(tuner.label(trial.number), gave_up=False)]
        reason = f"{LOST} {times} times (out of memory?)"
        self._leave_failure(tuner, tuner.job(trial), reason)
        self._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return [Lost(tuner.label(trial.number), gave_up=True)]

    def _leave_failure(self, tuner: Tuner, job: Job, reason: str) -> None:
        """A record of failure for the run that was in training when its worker died once too often."""
        run = self._under_way(job)
        if run is None:
            return  # all were trained: it died while it told so
        folder = run_folder(self.plan, run, self.out)
        record = replace(
            failed_record(self.plan, run, reason), study=self.plan.trial_field(run, job.number, tuner.group)
        )
        folder.mkdir(parents=True, exist_ok=True)
        leave(record, folder, run, self.patience)
        self.note_records(tuner, job)

    def note_records(self, tuner: Tuner, job: Job) -> None:
        """Keep the hashes of a configuration's records as they lie there, before its trial is told."""
        digests = {}
        for run in self.plan.runs_of(job.settings, job.config):
            path = run_folder(self.plan, run, self.out) / run_record.FILE_NAME
            if path.exists():
                digests[str(run.seed)] = run_record.digest(path.read_bytes())
        self._storage.set_trial_user_attr(job.trial_id, "records", digests)

    def _under_way(self, job: Job) -> PlannedRun | None:
        for run in self.plan.runs_of(job.settings, job.config):
            folder = run_folder(self.plan, run, self.out)
            if recorded(folder, run) is None:
                paused = paused_record(folder, run)
                if paused is None or metrics_at(paused, job.until) is None:
                    return run
        return None

    def counts(self) -> Counter[str]:
        """Trials by what became of them."""
        found = Counter(trial.state.name.lower() for tuner in self.tuners for trial in tuner.trained())
        for trial in (trial for tuner in self.tuners for trial in tuner.trials(TrialState.PRUNED)):
            if trial.user_attrs.get("reason", "").startswith("infeasible"):
                found["infeasible"] += 1
        return found
