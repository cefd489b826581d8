"""Queue of search trials shared by concurrent workers.

As in sweeps.runs.ledger, records are the truth. The search's lock orders decisions (what to train next); a configuration's
lock is held from before its trial is RUNNING until after it is told, so whoever gets it and finds the trial RUNNING knows
that its worker is dead.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core.records import record as records
from core.records.record import set_aside
from core.runtime.retry import Patience, no_space
from sweeps.runs.folders import RunLock, leave, locked, recorded, run_folder
from sweeps.runs.liveness import LOST, Fate, Workplace
from sweeps.runs.trials import failed_record, keep_to_folder
from sweeps.search.plan import SearchPlan
from sweeps.search.resume import metrics_at, paused_record
from sweeps.search.tuner import Job, Tuner
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import PlannedRun

LOCK = ".search.lock"
MOST_LOSSES = 2


@dataclass(frozen=True)
class Claim:
    """A configuration that this process alone trains, until it is told or released."""

    tuner: Tuner
    job: Job
    lock: RunLock


class SearchLedger:
    """The trials of one search. Raises UserError when the storage's studies belong to another folder of runs."""

    def __init__(
        self,
        plan: SearchPlan,
        out: Path,
        storage: BaseStorage,
        workplace: Workplace = Workplace(),  # noqa: B008  (this machine)
    ) -> None:
        self.plan, self.out, self._storage, self.workplace = plan, out, storage, workplace
        self.patience = storage.patience if isinstance(storage, PatientStorage) else Patience()
        self.folder = out / plan.study_name
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK):
            self.tuners = [Tuner(plan, group, storage, workplace) for group in plan.groups]
            for tuner in self.tuners:
                self.folder_id = keep_to_folder(tuner.study, out, plan.search.question)

    def claim(self) -> tuple[Claim | None, bool]:
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
                    return Claim(tuner, job, lock), True
                tuner.release(job.trial_id)
                return None, True  # another sweep of this folder, on another storage, trains the same configuration
            if any(tuner.trials(TrialState.RUNNING) for tuner in self.tuners):
                return None, True
            for tuner in self.tuners:
                tuner.finish()
        return None, False

    def is_over(self) -> bool:
        """True if nothing is left to train, wait for, or decide about."""
        states = (TrialState.RUNNING, TrialState.WAITING)
        return all(tuner.is_closed() and not tuner.trials(*states) for tuner in self.tuners)

    def complete_arms(self) -> set[str]:
        """The folders' names of all configurations that are trained to the end."""
        complete = [trial for tuner in self.tuners for trial in tuner.trials(TrialState.COMPLETE)]
        return {f"c-{trial.user_attrs['arm'][:10]}" for trial in complete}

    def arm_folder(self, job: Job) -> Path:
        """Folder of a configuration's runs."""
        return self.folder / self.plan.runs(job.settings, job.config)[0].arm

    def reconcile(self, *, retry_failed: bool = False) -> tuple[int, int]:
        """Queue again what dead workers were training, and with `retry_failed` what failed. Returns how many of each."""
        with locked(self.folder / LOCK):
            lost = sum(self._reconcile(tuner) for tuner in self.tuners)
            failed = sum(self._retry(tuner) for tuner in self.tuners) if retry_failed else 0
        return lost, failed

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
                runs = self.plan.runs(job.settings, job.config)
                places = [run_folder(self.plan.sweep, run, self.out) for run in runs]
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

    def _reconcile(self, tuner: Tuner) -> int:
        """Queue again what a dead worker was training: it goes on from its last checkpoint."""
        found = 0
        for trial in tuner.trials(TrialState.RUNNING):
            if "arm" not in trial.user_attrs:  # its process died while it was drawn
                self._storage.set_trial_user_attr(trial._trial_id, "reason", "lost while it was drawn")
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                continue
            lock = RunLock(self.folder / f"c-{trial.user_attrs['arm'][:10]}")
            if not lock.acquire():
                continue
            try:
                found += self._settle(tuner, trial, lock)
            finally:
                lock.release()
        return found

    def _settle(self, tuner: Tuner, trial: FrozenTrial, lock: RunLock) -> bool:
        """Decide about a trial whose lock is held. Returns whether it is queued again."""
        if self._storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return False  # told while its lock was being asked for
        fate = self.workplace.fate(trial)
        if fate is Fate.ALIVE:
            return False
        self.patience.call(lambda again: lock.take(), no_space)  # a worker that lives after all leaves nothing more
        count = "losses" if fate is Fate.DIED else "moved"
        times = trial.user_attrs.get(count, 0) + 1
        self._storage.set_trial_user_attr(trial._trial_id, count, times)
        if fate is Fate.MOVED or times <= MOST_LOSSES:
            tuner.release(trial._trial_id)
            return True
        reason = f"{LOST} {times} times (out of memory?)"
        self._leave_failure(tuner, tuner.job(trial), reason)
        self._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return False

    def _leave_failure(self, tuner: Tuner, job: Job, reason: str) -> None:
        """A record of failure for the run that was in training when its worker died once too often."""
        run = self._under_way(job)
        if run is None:
            return  # all were trained: it died while it told so
        folder = run_folder(self.plan.sweep, run, self.out)
        record = replace(
            failed_record(self.plan.sweep, run, reason), study=self.plan.place(run, job.number, tuner.group)
        )
        folder.mkdir(parents=True, exist_ok=True)
        leave(record, folder, run, self.patience)
        self.note_records(tuner, job)

    def note_records(self, tuner: Tuner, job: Job) -> None:
        """Keep the hashes of a configuration's records as they lie there, before its trial is told."""
        digests = {}
        for run in self.plan.runs(job.settings, job.config):
            path = run_folder(self.plan.sweep, run, self.out) / records.FILE_NAME
            if path.exists():
                digests[str(run.seed)] = records.digest(path.read_bytes())
        tuner.note_records(job, digests)

    def _under_way(self, job: Job) -> PlannedRun | None:
        for run in self.plan.runs(job.settings, job.config):
            folder = run_folder(self.plan.sweep, run, self.out)
            if recorded(folder, run) is None:
                paused = paused_record(folder, run)
                if paused is None or metrics_at(paused, job.until) is None:
                    return run
        return None

    def counts(self) -> Counter[str]:
        """Trials by what became of them."""
        found: Counter[str] = Counter()
        for tuner in self.tuners:
            for trial in tuner.trained():
                found[trial.state.name.lower()] += 1
            for trial in tuner.trials(TrialState.PRUNED):
                if trial.user_attrs.get("reason", "").startswith("infeasible"):
                    found["infeasible"] += 1
        return found
