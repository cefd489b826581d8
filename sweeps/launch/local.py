"""A sweep on this machine: worker processes, watched, replaced when they die and stopped together."""

import collections
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.record import FILE_NAME
from core.runtime.units import counted
from sweeps.launch.events import Event, Summary
from sweeps.launch.machine import default_workers
from sweeps.launch.pool import Pool, warm_workers
from sweeps.launch.running_sweeps import present_in
from sweeps.runs.folders import recorded, run_folder, write_design
from sweeps.runs.ledger import MOST_LOSSES, Ledger
from sweeps.runs.obstacles import check_places
from sweeps.runs.worker import TRAINER
from sweeps.storage.storage import choose_url, open_storage
from sweeps.studies.plan import Plan, PlannedRun

MOST_FAILED_STARTS = 2
MOST_IDLE_ROUNDS = 3

__all__ = ["default_workers", "run"]


def run(
    plan: Plan,
    out: Path,
    *,
    storage_url: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    retry_failed: bool = False,
    trainer: str = TRAINER,
) -> Summary:
    """Train every run of a plan that has no record yet.

    out: the folder of all runs. storage_url: None = $ABLATE_STORAGE, or a journal in `out`. workers: processes; None =
    one per GPU, or one per core. trainer: "module:function" with core.training.run.train's signature.
    Ctrl-C, SIGTERM and SIGHUP stop the workers; what they were training is trained again next time.
    Raises UserError for a storage that can't be used and for workers that can't start.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    shown, out = out / plan.study_name, out.absolute()
    check_places(out, out / plan.study_name, (run_folder(plan, one, out) for one in plan.runs))
    url = choose_url(storage_url, out, out / plan.study_name)
    storage = open_storage(url)
    # At once, as nothing can be refused any more: reading what is recorded and starting the workers take their time.
    on_event(Event("message", f"{plan.study_name}: {counted(len(plan.runs), 'run')}, in {shown}"))
    with ExitStack() as scope:
        if retry_failed or any(not (run_folder(plan, one, out) / FILE_NAME).exists() for one in plan.runs):
            scope.enter_context(warm_workers(trainer, plan.devices))  # it imports while this process looks around
        ledger = Ledger(plan, out, storage)
        write_design(out / plan.study_name, plan.design)
        if retry_failed:
            ledger.reconcile(retry_failed=True)
        before = _statuses(plan, out)
        scope.enter_context(stop_signals())
        scope.enter_context(present_in(out / plan.study_name))
        interrupted, waiting = False, 0
        with Pool(plan, out, url, trainer) as pool:
            try:
                waiting = _Sweep(ledger, pool, on_event).work(workers or default_workers(plan.devices), before)
            except KeyboardInterrupt:
                interrupted = True
                on_event(Event("message", "stopping the workers; what is recorded stays"))
                pool.stop()
    after = _statuses(plan, out) if before["missing"] else before  # thousands of records take a second to read
    summary = _summarise(before, after, after["missing"] if interrupted else waiting, interrupted)
    if interrupted:
        text = f"stopped: {summary.total - summary.missing - summary.elsewhere} of {counted(summary.total, 'run')} recorded; "
        on_event(Event("message", f"{text}`{plan.design.command}` trains the rest"))
    return summary


class _Sweep:
    """One sweep under way."""

    def __init__(self, ledger: Ledger, pool: Pool, on_event: Callable[[Event], None]) -> None:
        self._ledger, self._pool, self._tell = ledger, pool, on_event
        self._runs = {run.run_hash: run for run in ledger.plan.runs}
        self._training: dict[int, PlannedRun] = {}
        self._failed_starts = 0

    def work(self, workers: int, before: collections.Counter[str]) -> int:
        """Have all runs trained that nobody else trains; how many still wait in the end."""
        self._reconcile(None)
        waiting = self._ledger.waiting()
        kept = before["complete"] + before["failed"]
        text = f"{counted(len(self._runs), 'run')}: {kept} recorded already, {waiting} to train"
        if elsewhere := len(self._runs) - kept - waiting:
            text += f", {elsewhere} being trained by another process"
        self._tell(Event("planned", text, to_train=len(self._runs) - kept))
        idle_rounds = 0
        while waiting and idle_rounds < MOST_IDLE_ROUNDS:
            for number in range(min(workers, waiting)):
                self._pool.start(number, workers)
            for number, event in self._pool.events():
                if event is None:
                    self._on_exit(number, workers)
                else:
                    self._on_event(number, event)
            # A run can come free after the last worker looked: another sweep's worker died, say.
            self._reconcile(None)
            left = self._ledger.waiting()
            idle_rounds = idle_rounds + 1 if left >= waiting else 0
            waiting = left
        return waiting

    def _on_event(self, number: int, event: dict[str, Any]) -> None:
        run = self._runs[event["run_hash"]]
        folder = run_folder(self._ledger.plan, run, self._ledger.out)
        self._failed_starts = 0
        if event["event"] == "started":
            self._training[number] = run
            self._tell(Event("started", f"started {run.label}", run, folder))
            return
        del self._training[number]
        if event["event"] == "taken over":
            self._tell(
                Event("lost", f"{run.label} was taken over by another process while its worker slept", run, folder)
            )
        elif event["status"] == "complete":
            self._tell(Event("finished", f"finished {run.label}", run, folder))
        else:
            self._tell(Event("failed", f"failed {run.label}: {event['reason']}", run, folder))

    def _on_exit(self, number: int, workers: int) -> None:
        status = self._pool.wait(number)
        if status == 0:
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        died = f"worker {number + 1} died ({how})"
        run = self._training.pop(number, None)
        if run is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise UserError(f"{died} before it could train: {self._pool.last_words(number)}")
            self._tell(Event("message", f"{died} while idle: {self._pool.last_words(number)}"))
        self._reconcile(died, run)
        if self._ledger.waiting():
            self._pool.start(number, workers)

    def _reconcile(self, died: str | None, training: PlannedRun | None = None) -> None:
        for lost in self._ledger.reconcile():
            who = died if died and lost.run == training else "a worker died"
            folder = run_folder(self._ledger.plan, lost.run, self._ledger.out)
            if lost.gave_up:
                text = f"{who} while training {lost.run.label}: given up after {MOST_LOSSES + 1} losses"
                self._tell(Event("failed", text, lost.run, folder))
            else:
                self._tell(Event("lost", f"{who} while training {lost.run.label}: queued again", lost.run, folder))


def _statuses(plan: Plan, out: Path) -> collections.Counter[str]:
    found = (recorded(run_folder(plan, run, out), run) for run in plan.runs)
    return collections.Counter("missing" if record is None else record.status for record in found)


def _summarise(
    before: collections.Counter[str], after: collections.Counter[str], waiting: int, interrupted: bool
) -> Summary:
    missing = min(waiting, after["missing"])
    return Summary(
        done=after["complete"] - before["complete"],
        failed=after["failed"] - before["failed"],
        reused=before["complete"],
        failed_before=before["failed"],
        missing=missing,
        elsewhere=after["missing"] - missing,
        interrupted=interrupted,
    )


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
