"""Which run is whose: one Optuna study per ablation, one trial per attempt at a run.

Records are the truth and trials follow them: a record is written first, its trial told second, and whatever a crash
leaves between the two is repaired by `Ledger.reconcile`. Two locks order everything else:

- the run's lock (sweeps.folders.RunLock) is held from before a trial is claimed until after it is told, so whoever
  holds it and finds the trial RUNNING knows that its worker is dead;
- the plan's lock is held while trials are added, so that no run is queued twice.
"""

import fcntl
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core import records
from core.errors import UserError
from core.records import RunRecord
from core.training.checkpoints import saved_step
from sweeps.folders import RunLock, clean, recorded, run_folder, set_aside
from sweeps.plan import Plan, PlannedRun
from sweeps.study import folder_id
from sweeps.trials import Key, describe_run, failed_record, key_of, parameter_names
from sweeps.workplace import LOST, MOVED, PREEMPTED, Fate, Workplace

MOST_LOSSES = 2
PLAN_LOCK = ".plan.lock"


@dataclass(frozen=True)
class Claim:
    """A run that this process alone works on, until it is finished or abandoned.

    attempt: how often it was begun from its first step before; going on from where it was left is the same attempt.
    """

    run: PlannedRun
    folder: Path
    attempt: int
    trial_id: int
    lock: RunLock

    @property
    def key(self) -> Key:
        return self.run.run_hash, self.run.fingerprint


@dataclass(frozen=True)
class Lost:
    """A run whose worker died. gave_up: it died too often, and a failed record says so."""

    run: PlannedRun
    gave_up: bool


class Ledger:
    """The trials of one plan.

    Raises UserError when the storage's study of that name belongs to another folder of runs.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        storage: BaseStorage,
        workplace: Workplace = Workplace(),  # noqa: B008  (this machine)
    ) -> None:
        self.plan, self.out, self._storage, self.workplace = plan, out, storage, workplace
        self._runs = {(run.run_hash, run.fingerprint): run for run in plan.runs}
        self._order = {key: place for place, key in enumerate(self._runs)}
        self._losses: Counter[Key] = Counter()
        out.mkdir(parents=True, exist_ok=True)
        with self._plan_lock():
            self._study = optuna.create_study(
                study_name=plan.study_name,
                storage=storage,
                direction="minimize" if plan.goal == "min" else "maximize",
                load_if_exists=True,
            )
            self.folder_id = self._check_folder()

    def reconcile(self, *, retry_failed: bool = False) -> list[Lost]:
        """Bring trials in line with records, and queue every run that has neither a record nor a live worker.

        retry_failed: set failed records aside and queue their runs again.
        """
        lost = []
        with self._plan_lock():
            trials = self._by_run()
            names = parameter_names(self.plan, self._study.get_trials(deepcopy=False))
            for key, run in self._runs.items():
                lock = RunLock(run_folder(self.plan, run, self.out))
                if not lock.acquire():
                    continue  # its worker is alive, or another process is deciding about it
                try:
                    lost += self._settle(key, run, trials[key], names, retry_failed)
                finally:
                    lock.release()
        return lost

    def waiting(self) -> int:
        """How many runs of the plan wait for a worker."""
        return sum(key_of(trial) in self._runs for trial in self._trials(TrialState.WAITING))

    def claim(self) -> tuple[Claim | None, bool]:
        """The next waiting run, in the plan's order, for this process alone.

        Returns the claim, or None and whether runs still wait whose lock another process holds at the moment.
        """
        waiting = [trial for trial in self._trials(TrialState.WAITING) if key_of(trial) in self._runs]
        busy = False
        for trial in sorted(waiting, key=lambda trial: self._order[key_of(trial)]):
            run = self._runs[key_of(trial)]
            folder = run_folder(self.plan, run, self.out)
            lock = RunLock(folder)
            if not lock.acquire():
                busy = True
                continue
            if self._take(trial):
                record = recorded(folder, run)
                if record is None:
                    clean(folder)
                    return Claim(run, folder, self._attempt(trial, folder), trial._trial_id, lock), busy
                self._tell(trial._trial_id, run, record)  # trained meanwhile by a sweep on another storage
            lock.release()
        return None, busy

    def finish(self, claim: Claim, record: RunRecord, attributes: Mapping[str, Any]) -> None:
        """Tell the trial what its record says, and let go of the run. The record must have been written before."""
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(claim.trial_id, name, value)
        self._tell(claim.trial_id, claim.run, record)
        claim.lock.release()

    def abandon(self, claim: Claim, reason: str, *, keep_lock: bool = False) -> None:
        """Let go of a run that was stopped: it is gone on with next time, unless its record was just written."""
        record = recorded(claim.folder, claim.run)
        if record is not None:
            self._tell(claim.trial_id, claim.run, record)
        else:
            self._fail(claim.trial_id, reason)
        if not keep_lock:
            claim.lock.release()

    def put_back(self, claim: Claim, reason: str) -> None:
        """Abandon a run so that any worker may go on with it at once."""
        with self._plan_lock():
            self.abandon(claim, reason, keep_lock=True)
            try:
                waits = any(key_of(trial) == claim.key for trial in self._trials(TrialState.WAITING))
                if not waits and recorded(claim.folder, claim.run) is None:
                    names = parameter_names(self.plan, self._study.get_trials(deepcopy=False))
                    self._add(claim.run, names, TrialState.WAITING)
            finally:
                claim.lock.release()

    def running(self) -> list[FrozenTrial]:
        """The plan's trials that some worker has claimed and not told of."""
        return [trial for trial in self._trials(TrialState.RUNNING) if key_of(trial) in self._runs]

    def durations_s(self) -> list[float]:
        """How long each complete run took, from claim to tell."""
        complete = [trial for trial in self._trials(TrialState.COMPLETE) if key_of(trial) in self._runs]
        return [trial.duration.total_seconds() for trial in complete if trial.duration is not None]

    def _attempt(self, trial: FrozenTrial, folder: Path) -> int:
        """Remembered in the trial, unless it is the first."""
        key = key_of(trial)
        before = [t for t in self._trials() if key_of(t) == key and t.number < trial.number and "host" in t.user_attrs]
        if not before:
            return 0
        last = before[-1].user_attrs
        goes_on = last.get("reason") == PREEMPTED or saved_step(folder) is not None
        attempt = int(last.get("attempt", 0)) + (not goes_on)
        if attempt:
            self._storage.set_trial_user_attr(trial._trial_id, "attempt", attempt)
        return attempt

    def _take(self, trial: FrozenTrial) -> bool:
        # The storage compares and sets: of several processes that ask, one is told True.
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return False
        except UpdateFinishedTrialError:
            return False
        for name, value in self.workplace.attributes().items():
            self._storage.set_trial_user_attr(trial._trial_id, name, value)
        return True

    def _settle(
        self, key: Key, run: PlannedRun, trials: Sequence[FrozenTrial], names: Mapping[str, str], retry_failed: bool
    ) -> list[Lost]:
        """Decide about a run whose lock is held: nobody else works on it."""
        folder = run_folder(self.plan, run, self.out)
        lost = []
        record = recorded(folder, run)
        trials = [trial if trial.state.is_finished() else self._storage.get_trial(trial._trial_id) for trial in trials]
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            fate = self.workplace.fate(trial)
            if fate is Fate.ALIVE:
                return []
            if record is None:
                record = self._count_loss(key, run, folder, trials) if fate is Fate.DIED else None
                lost.append(Lost(run, gave_up=record is not None))
            if record is None:
                self._fail(trial._trial_id, LOST if fate is Fate.DIED else MOVED)
            else:
                self._tell(trial._trial_id, run, record)
        if retry_failed and record is not None and record.status == "failed" and not lost:
            set_aside(folder)
            record = None
        told = {self._storage.get_trial(trial._trial_id).user_attrs.get("status") for trial in trials}
        waits = [trial for trial in trials if trial.state == TrialState.WAITING]
        if record is None and not waits:
            self._add(run, names, TrialState.WAITING)
        elif record is not None:
            for trial in waits:
                self._fail(trial._trial_id, "already recorded")
            if record.status not in told:  # the journal is younger than the record
                self._adopt(run, names, record)
        return lost

    def _count_loss(self, key: Key, run: PlannedRun, folder: Path, trials: Sequence[FrozenTrial]) -> RunRecord | None:
        self._losses[key] = 1 + max(self._losses[key], self.workplace.losses(trials))
        if self._losses[key] <= MOST_LOSSES:
            return None
        record = failed_record(self.plan, run, f"{LOST} {self._losses[key]} times (out of memory?)")
        set_aside(folder)
        records.write(record, folder)
        return record

    def _tell(self, trial_id: int, run: PlannedRun, record: RunRecord) -> None:
        folder = run_folder(self.plan, run, self.out)
        path = (folder / records.FILE_NAME).relative_to(self.out).as_posix()
        self._storage.set_trial_user_attr(trial_id, "status", record.status)
        self._storage.set_trial_user_attr(trial_id, "record", path)
        value = record.metrics.get(self.plan.design["metric"])
        if record.status == "failed":
            self._fail(trial_id, record.reason or "no reason given")
        elif value is None or not math.isfinite(value):
            self._fail(trial_id, f"its record has no finite {self.plan.design['metric']}")
        elif self._is_told(trial_id, run):
            self._fail(trial_id, "already recorded")
        else:
            self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])

    def _is_told(self, trial_id: int, run: PlannedRun) -> bool:
        key = (run.run_hash, run.fingerprint)
        return any(key_of(t) == key and t._trial_id != trial_id for t in self._trials(TrialState.COMPLETE))

    def _fail(self, trial_id: int, reason: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _adopt(self, run: PlannedRun, names: Mapping[str, str], record: RunRecord) -> None:
        """A trial for a record that has none, such as when the journal was deleted."""
        trial_id = self._add(run, names, TrialState.RUNNING)
        self._tell(trial_id, run, record)

    def _add(self, run: PlannedRun, names: Mapping[str, str], state: TrialState) -> int:
        trial = describe_run(self.plan, run, run_folder(self.plan, run, self.out).relative_to(self.out), names, state)
        return self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _by_run(self) -> dict[Key, list[FrozenTrial]]:
        trials = defaultdict(list)
        for trial in self._trials():
            trials[key_of(trial)].append(trial)
        return trials

    def _check_folder(self) -> str:
        mine = folder_id(self.out)
        owner = self._study.user_attrs.get("folder_id")
        if owner is None:
            self._study.set_user_attr("folder_id", mine)
            self._study.set_user_attr("question", self.plan.design["question"])
        elif owner != mine:
            raise UserError(
                f"storage: its study '{self.plan.study_name}' belongs to another folder of runs than {self.out}; "
                "use that folder, or another storage (each folder of runs needs its own database)"
            )
        return mine

    @contextmanager
    def _plan_lock(self) -> Iterator[None]:
        handle = os.open(self.out / PLAN_LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
