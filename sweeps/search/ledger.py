"""Whose turn it is: a search's studies, shared by any number of workers of any number of processes.

As in sweeps.ledger, records are the truth. The search's lock orders decisions (what to train next); a configuration's
lock is held from before its trial is RUNNING until after it is told, so whoever gets it and finds the trial RUNNING knows
that its worker is dead.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core.errors import UserError
from core.patience import Patience
from sweeps.folders import RunLock, locked
from sweeps.patient import PatientStorage
from sweeps.search.plan import SearchPlan
from sweeps.search.tuner import Job, Tuner
from sweeps.study import folder_id

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

    def __init__(self, plan: SearchPlan, out: Path, storage: BaseStorage) -> None:
        self.plan, self.out, self._storage = plan, out, storage
        self.patience = storage.patience if isinstance(storage, PatientStorage) else Patience()
        self.folder = out / plan.study_name
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK):
            self.tuners = [Tuner(plan, group, storage) for group in plan.groups]
            self._check_folder()

    def claim(self) -> tuple[Claim | None, bool]:
        """What to train next, of the group that has had least.

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
                    return Claim(tuner, job, lock), True
                tuner.release(job.trial_id)
                return None, True  # another sweep of this folder, on another storage, trains the same configuration
            if any(tuner.trials(TrialState.RUNNING) for tuner in self.tuners):
                return None, True
            for tuner in self.tuners:
                tuner.finish()
        return None, False

    def is_over(self) -> bool:
        """Whether nothing is left to train, wait for, or decide about."""
        states = (TrialState.RUNNING, TrialState.WAITING)
        return all(tuner.is_closed() and not tuner.trials(*states) for tuner in self.tuners)

    def arm_folder(self, job: Job) -> Path:
        """Where a configuration's runs lie."""
        return self.folder / self.plan.runs(job.settings, job.config)[0].arm

    def _reconcile(self, tuner: Tuner) -> None:
        """Queue again what a dead worker was training: it goes on from its last checkpoint."""
        for trial in tuner.trials(TrialState.RUNNING):
            if "arm" not in trial.user_attrs:  # its process died while it was drawn
                self._storage.set_trial_user_attr(trial._trial_id, "reason", "lost while it was drawn")
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                continue
            lock = RunLock(self.folder / f"c-{trial.user_attrs['arm'][:10]}")
            if not lock.acquire():
                continue
            try:
                self._settle(tuner, trial)
            finally:
                lock.release()

    def _settle(self, tuner: Tuner, trial: FrozenTrial) -> None:
        if self._storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
            return  # told while its lock was being asked for
        losses = trial.user_attrs.get("losses", 0) + 1
        self._storage.set_trial_user_attr(trial._trial_id, "losses", losses)
        if losses <= MOST_LOSSES:
            tuner.release(trial._trial_id)
            return
        reason = f"lost: worker died {losses} times (out of memory?)"
        self._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def counts(self) -> Counter[str]:
        """Trials by what became of them."""
        found: Counter[str] = Counter()
        for tuner in self.tuners:
            for trial in tuner.trials():
                if "arm" in trial.user_attrs:
                    found[trial.state.name.lower()] += 1
                elif trial.user_attrs.get("reason", "").startswith("infeasible"):
                    found["infeasible"] += 1
        return found

    def _check_folder(self) -> None:
        mine = folder_id(self.out)
        for tuner in self.tuners:
            owner = tuner.study.user_attrs.get("folder_id")
            if owner is None:
                tuner.study.set_user_attr("folder_id", mine)
                tuner.study.set_user_attr("question", self.plan.search.question)
            elif owner != mine:
                raise UserError(
                    f"storage: its study '{tuner.group.study}' belongs to another folder of runs than {self.out}; use that "
                    "folder, or another storage (each folder of runs needs its own database)"
                )
        self.folder_id = mine
