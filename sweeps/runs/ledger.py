"""Queue of runs shared by concurrent workers: one Optuna study per ablation, one trial per attempt at a run.

Records are the truth and trials follow them: a record is written first, its trial told second, and whatever a crash
leaves between the two is repaired by `Ledger.reconcile`. Two locks order everything else:

- the run's lock (sweeps.runs.folders.RunLock) is held from before a trial is claimed until after it is told, so whoever
  holds it and finds the trial RUNNING knows that its worker is dead, and takes the run: a worker that lives after all,
  but has lost the lock, leaves nothing (core.records.fencing);
- the plan's lock is held while trials are added, so that no run is queued twice.
"""

import contextlib
import logging
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from core.records import fencing, run_record
from core.records.fencing import FencedOffError
from core.records.run_record import RunRecord, set_aside
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.checkpoint_files import saved_step
from sweeps.runs.folders import RunLock, clean, leave, locked, pending, recorded, rescue, run_folder
from sweeps.runs.liveness import LOST, MOVED, PREEMPTED, Fate, Workplace
from sweeps.runs.queue import TAKEN_OVER, Claim, Ended, Lost, Queue
from sweeps.runs.trials import (
    Key,
    Waiting,
    as_ended,
    by_run,
    describe_run,
    failed_record,
    forget_deaths,
    keep_to_folder,
    key_of,
    note_death,
    parameter_names,
    waiting_runs,
)
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import Plan, PlannedRun

MOST_LOSSES = 2
PLAN_LOCK = ".plan.lock"
RECORDED = "already recorded"
BUSY_S = 5.0  # how long to wait for another process that decides about the last runs
LOCK_PATIENCE_S = 120.0  # a file server lets go of a lost node's locks after about 90 s
RETRY_S = 5.0
LONG_RUN = 0.9  # quantile of measured durations that has to fit into what is left of a time limit

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunClaim(Claim):
    """A run that this process alone works on, until it is finished or abandoned.

    attempt: how often it was begun from its first step before; going on from where it was left is the same attempt.
    first: whether no trial of it came before.
    """

    run: PlannedRun
    folder: Path
    trial_id: int
    first: bool = False

    @property
    def key(self) -> Key:
        return self.run.run_hash, self.run.fingerprint


class Ledger(Queue[RunClaim]):
    """The trials of one plan.

    Raises UserError when the storage's study of that name belongs to another folder of runs.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        storage: PatientStorage,
        workplace: Workplace = Workplace(),  # noqa: B008  (this machine)
    ) -> None:
        self.plan = self.sweep = plan
        self.out, self.folder, self._storage, self.workplace = out, out / plan.study_name, storage, workplace
        self._runs = {(run.run_hash, run.fingerprint): run for run in plan.runs}
        self._order = {key: place for place, key in enumerate(self._runs)}
        self._seen: deque[Waiting] = deque()  # that waited when this process last looked, in the plan's order
        self._patience = storage.patience
        out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / PLAN_LOCK):
            self._study = optuna.create_study(
                study_name=plan.study_name,
                storage=storage,
                direction="minimize" if plan.goal == "min" else "maximize",
                load_if_exists=True,
            )
            self.folder_id = keep_to_folder(self._study, out, plan.design.question)

    def reconcile(self, *, retry_failed: bool = False) -> list[Lost]:
        """Bring trials in line with records, and queue every run that has neither a record nor a live worker."""
        lost = []
        self._seen.clear()
        with locked(self.out / PLAN_LOCK):
            known = self._trials()
            trials, names = by_run(known), parameter_names(self.plan, known)
            for key, run in self._runs.items():
                lock = RunLock(run_folder(self.plan, run, self.out))
                if not self._acquire(lock):
                    continue  # its worker is alive, or another process is deciding about it
                try:
                    lost += self._settle(lock, run, trials[key], names, retry_failed)
                finally:
                    lock.release()
        return lost

    def queue_again(self, *, retry_failed: bool) -> str:
        before, waited = len(pending(self.plan, self.out)), self.waiting()
        self.reconcile(retry_failed=retry_failed)
        failed, waiting = len(pending(self.plan, self.out)) - before, self.waiting()
        again = waiting - waited - failed
        name = self.plan.study_name
        return f"{name}: {failed} failed and {again} lost, stopped or new runs queued; {waiting} wait"

    def waiting(self) -> int:
        """Number of runs of the plan that wait for a worker."""
        return len(self._waiting())

    def counts(self) -> Counter[str]:
        """Numbers of runs recorded as complete or failed, and of those without a record: "missing"."""
        found = (recorded(run_folder(self.plan, run, self.out), run) for run in self.plan.runs)
        return Counter("missing" if record is None else record.status for record in found)

    def needs_worker(self, *, left_idle: bool) -> bool:
        return self.waiting() > 0

    def pause(self, busy: bool, idle_s: float, *, patient: bool) -> float | None:
        """Seconds to wait before the next claim; None to leave. `patient` queues the runs of workers that Slurm has ended,
        and waits a little for locks that outlive them."""
        if busy and idle_s < BUSY_S:
            return 0.1
        if not patient:
            return None
        self.reconcile()
        running = [trial for trial in self._trials(TrialState.RUNNING) if key_of(trial) in self._runs]
        gone = [trial for trial in running if self.workplace.is_gone(trial)]
        waiting = self.waiting()
        if not (waiting or gone) or idle_s > LOCK_PATIENCE_S:
            return None
        if waiting:
            return 0.2  # if somebody holds the locks of all that wait
        log.info("waiting for %d runs of workers that Slurm has ended", len(gone))
        return RETRY_S

    def expected_s(self, lasted: Sequence[float]) -> float:
        """Seconds that a long run takes: a high quantile of those that are complete."""
        return float(np.quantile(self.durations_s() or lasted, LONG_RUN, method="inverted_cdf"))

    def claim(self) -> tuple[RunClaim | None, bool]:
        """The next waiting run, in the plan's order, for this process alone.

        Returns the claim, or None and whether runs still wait whose lock another process holds at the moment.
        """
        # What others took of those seen earlier is locked or recorded by now, which the storage needn't be asked for.
        claim, _ = self._next(hasty=True)
        if claim is not None:
            return claim, False
        self._seen = deque(sorted(self._waiting(), key=lambda trial: self._order[trial.key]))
        return self._next(hasty=False)

    def _next(self, *, hasty: bool) -> tuple[RunClaim | None, bool]:
        busy = False
        while self._seen:
            trial = self._seen.popleft()
            run = self._runs[trial.key]
            folder = run_folder(self.plan, run, self.out)
            if hasty and (folder / run_record.FILE_NAME).exists():
                continue
            lock = RunLock(folder)
            if not self._acquire(lock):
                busy = True
                continue
            try:
                claim = self._claim(trial, run, lock)
            except BaseException:
                lock.release()
                raise
            if claim is not None:
                return claim, busy
            lock.release()
        return None, busy

    def _waiting(self) -> list[Waiting]:
        found = waiting_runs(self._storage, self._study._study_id)
        return [trial for trial in found if trial.key in self._runs]

    def _claim(self, trial: Waiting, run: PlannedRun, lock: RunLock) -> RunClaim | None:
        if not self._take(trial):
            return None
        claim = RunClaim(
            label=run.label, lock=lock, runs=(run,), attempt=0, run_hash=run.run_hash, run=run, folder=lock.folder,
            trial_id=trial.trial_id, first=trial.before == 0,
        )  # fmt: skip
        try:
            record = rescue(claim.folder, run, self._patience) or self._take_over(lock, run)
            if record is None:
                with lock.heeded():
                    self._patience.call(lambda again: clean(claim.folder), no_space)
                claim.attempt = self._attempt(trial, claim.folder)
                return claim
        except FencedOffError:
            with contextlib.suppress(UpdateFinishedTrialError):
                self._fail(trial.trial_id, TAKEN_OVER)
            return None
        except SystemExit:  # told to stop while it waited for room
            self.put_back(claim, PREEMPTED if self.workplace.place else "interrupted")
            raise
        self._tell(trial.trial_id, run, record)  # trained meanwhile by a sweep on another storage
        return None

    def _take_over(self, lock: RunLock, run: PlannedRun) -> RunRecord | None:
        """Take a run; returns its record where a former worker, which had lost the lock, was just in time."""
        self._patience.call(lambda again: lock.take(), no_space)
        return recorded(lock.folder, run)

    def _acquire(self, lock: RunLock) -> bool:
        return self._patience.call(lambda again: lock.acquire(), no_space)

    def prepare(self, claim: RunClaim, run: PlannedRun) -> None:
        """Check that the run is still this process's; `claim` has emptied its folder."""
        fencing.check(claim.folder)

    def study_field(self, claim: RunClaim, run: PlannedRun) -> dict[str, Any]:
        return self.plan.study_field(run)

    def finish(self, claim: RunClaim, record: RunRecord, attributes: Mapping[str, Any]) -> Ended:
        try:
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(claim.trial_id, name, value)
            self._tell(claim.trial_id, claim.run, record, first=claim.first)
        except UpdateFinishedTrialError:
            log.warning("%s: another process has told of it already", claim.run.label)
        claim.lock.release()
        if record.status == "complete":
            return Ended("finished", f"finished {claim.label}")
        return Ended("failed", f"failed {claim.label}: {record.reason}")

    def abandon(self, claim: RunClaim, reason: str) -> None:
        """Let go of a run that was stopped, or taken over: it is gone on with next time, unless it is recorded."""
        self._tell_abandoned(claim, reason)
        claim.lock.release()

    def _tell_abandoned(self, claim: RunClaim, reason: str) -> None:
        record = recorded(claim.folder, claim.run)
        reason = reason if claim.lock.holds() else TAKEN_OVER
        try:
            if record is not None:
                self._tell(claim.trial_id, claim.run, record)
            else:
                self._fail(claim.trial_id, reason)
        except UpdateFinishedTrialError:
            log.info("%s: whoever took it over has told of this attempt", claim.run.label)

    def put_back(self, claim: RunClaim, reason: str) -> None:
        """Abandon a run so that any worker may go on with it at once."""
        with locked(self.out / PLAN_LOCK):
            try:
                self._tell_abandoned(claim, reason)
                if not claim.lock.holds():
                    return
                waits = any(trial.key == claim.key for trial in self._waiting())
                if not waits and recorded(claim.folder, claim.run) is None:
                    trials = self._trials()
                    before = sum(key_of(trial) == claim.key for trial in trials)
                    self._add(claim.run, parameter_names(self.plan, trials), before)
            finally:
                claim.lock.release()

    def durations_s(self) -> list[float]:
        """Seconds of each complete run, from claim to tell."""
        complete = [trial for trial in self._trials(TrialState.COMPLETE) if key_of(trial) in self._runs]
        return [trial.duration.total_seconds() for trial in complete if trial.duration is not None]

    def _attempt(self, trial: Waiting, folder: Path) -> int:
        """Number of earlier attempts at the run; continuing from a checkpoint isn't a new attempt."""
        if trial.before == 0:
            return 0
        earlier = [t for t in self._trials() if key_of(t) == trial.key and t._trial_id < trial.trial_id]
        begun = [other.user_attrs for other in earlier if "host" in other.user_attrs]
        if not begun:
            return 0
        goes_on = begun[-1].get("reason") == PREEMPTED or saved_step(folder) is not None
        attempt = int(begun[-1].get("attempt", 0)) + (not goes_on)
        if attempt:
            self._storage.set_trial_user_attr(trial.trial_id, "attempt", attempt)
        return attempt

    def _take(self, trial: Waiting) -> bool:
        # The storage compares and sets: of several processes that ask, one is told True.
        try:
            if not self._storage.set_trial_state_values(trial.trial_id, TrialState.RUNNING):
                return False
        except UpdateFinishedTrialError:
            return False
        for name, value in self.workplace.attributes().items():
            self._storage.set_trial_user_attr(trial.trial_id, name, value)
        return True

    def _settle(
        self,
        lock: RunLock,
        run: PlannedRun,
        trials: Sequence[FrozenTrial],
        names: Mapping[str, str],
        retry_failed: bool,
    ) -> list[Lost]:
        """Decide about a run whose lock is held: nobody else works on it, or is to find out that it has lost it."""
        folder = lock.folder
        lost = []
        try:
            record = rescue(folder, run, Patience(limit_s=0))
        except OutOfPatienceError:
            return []  # trained, and its record waits elsewhere for room
        trials = [trial if trial.state.is_finished() else self._storage.get_trial(trial._trial_id) for trial in trials]
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            fate = self.workplace.fate(trial)
            if fate is Fate.ALIVE:
                return []
            if record is None and (record := self._take_over(lock, run)) is None:
                record = self._count_loss(run, folder, trial) if fate is Fate.DIED else None
                lost.append(Lost(run.label, record is not None, run))
            if record is None:
                self._fail(trial._trial_id, LOST if fate is Fate.DIED else MOVED)
            else:
                self._tell(trial._trial_id, run, record)
        if retry_failed and record is not None and record.status == "failed" and not lost:
            set_aside(folder)
            forget_deaths(folder)
            record = None
        told = {self._storage.get_trial(trial._trial_id).user_attrs.get("status") for trial in trials}
        waits = [trial for trial in trials if trial.state == TrialState.WAITING]
        for trial in waits[1:]:  # the answer to the first was lost on its way
            self._fail(trial._trial_id, "queued twice")
        if record is None and not waits:
            self._add(run, names, len(trials))
        elif record is not None:
            for trial in waits[:1]:
                self._fail(trial._trial_id, RECORDED)
            if record.status not in told:  # the journal is younger than the record
                self._adopt(run, names, record, trials)
        return lost

    def _count_loss(self, run: PlannedRun, folder: Path, trial: FrozenTrial) -> RunRecord | None:
        times = self._patience.call(lambda again: note_death(folder, trial, saved_step(folder)), no_space)
        if times <= MOST_LOSSES:
            return None
        record = failed_record(self.plan, run, f"{LOST} {times} times (out of memory?)")
        return leave(record, folder, run, self._patience)

    def _told(self, run: PlannedRun, record: RunRecord) -> tuple[dict[str, str], float | None]:
        """A record as a trial says it: attributes, and the value; None, with a reason among them, where the run failed."""
        path, metric = run_folder(self.plan, run, self.out) / run_record.FILE_NAME, self.plan.design.metric
        said = {
            "status": record.status,
            "record": path.relative_to(self.out).as_posix(),
            "record_sha256": run_record.digest(path.read_bytes()),
        }
        value = record.metrics.get(metric)
        if record.status == "failed":
            return said | {"reason": record.reason or "no reason given"}, None
        if value is None or not math.isfinite(value):
            return said | {"reason": f"its record has no finite {metric}"}, None
        return said, value

    def _tell(self, trial_id: int, run: PlannedRun, record: RunRecord, *, first: bool = False) -> None:
        said, value = self._told(run, record)
        reason = said.pop("reason", None)
        if value is not None and not first and self._is_told(trial_id, run):
            reason = RECORDED
        for name, text in said.items():
            self._storage.set_trial_user_attr(trial_id, name, text)
        if reason is not None:
            self._fail(trial_id, reason)
        else:
            self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])  # type: ignore[list-item]

    def _is_told(self, trial_id: int, run: PlannedRun) -> bool:
        key = (run.run_hash, run.fingerprint)
        return any(key_of(t) == key and t._trial_id != trial_id for t in self._trials(TrialState.COMPLETE))

    def _fail(self, trial_id: int, reason: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _adopt(
        self, run: PlannedRun, names: Mapping[str, str], record: RunRecord, trials: Sequence[FrozenTrial]
    ) -> None:
        """A trial for a record that has none, such as when the journal was deleted: it has ended as it is made.

        trials: the run's others. One operation for each, as thousands may lie there.
        """
        said, value = self._told(run, record)
        if value is not None and any(trial.state == TrialState.COMPLETE for trial in trials):
            said, value = said | {"reason": RECORDED}, None
        trial = as_ended(describe_run(self.plan, run, self.out, names, len(trials)), record, said, value)
        self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def _add(self, run: PlannedRun, names: Mapping[str, str], before: int) -> None:
        trial = describe_run(self.plan, run, self.out, names, before)
        self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)
