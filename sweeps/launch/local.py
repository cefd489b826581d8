"""A sweep or a search on this machine: worker processes, watched, replaced when they die and stopped together."""

import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.run_record import FILE_NAME
from core.runtime.child_process import handle_signals
from core.runtime.units import counted
from sweeps.kinds import operations_of
from sweeps.launch.events import Summary
from sweeps.launch.machine import default_workers
from sweeps.launch.obstacles import check_places
from sweeps.launch.pool import TRAINER, Pool, warm_workers
from sweeps.launch.progress import Event
from sweeps.launch.running_sweeps import registered_in
from sweeps.runs.folders import run_folder, write_design
from sweeps.runs.ledger import MOST_LOSSES
from sweeps.runs.liveness import Workplace
from sweeps.runs.queue import Queue
from sweeps.storage.storage import choose_url, open_storage
from sweeps.studies.plan import PlannedRun, Sweep

MOST_FAILED_STARTS = 2
MOST_IDLE_ROUNDS = 3


def run(
    plan: Sweep,
    out: Path,
    *,
    storage_url: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    retry_failed: bool = False,
    trainer: str = TRAINER,
) -> Summary:
    """Train every run of a plan that has no record yet, or search until the budget is spent.

    out: the folder of all runs. storage_url: None = $ABLATE_STORAGE, or a journal in `out`. workers: processes; None =
    one per GPU, or one per core. trainer: "module:function" with core.training.run.train's signature.
    Ctrl-C, SIGTERM and SIGHUP stop the workers; what they were training is gone on with by the next call.
    Raises UserError for a storage that can't be used and for workers that can't start or keep dying.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    shown, out, runs = out / plan.study_name, out.absolute(), plan.runs
    check_places(plan, out)
    url = choose_url(storage_url, out, out / plan.study_name)
    storage = open_storage(url)
    if runs:  # at once, as nothing can be refused any more: reading records and starting workers take their time
        on_event(Event("message", f"{plan.study_name}: {counted(len(runs), 'run')}, in {shown}"))
    with ExitStack() as scope:
        if runs and (retry_failed or any(not (run_folder(plan, run, out) / FILE_NAME).exists() for run in runs)):
            scope.enter_context(warm_workers(trainer, plan.devices))  # it imports while this process looks around
        queue = operations_of(plan.kind).queue(plan, out, storage, Workplace())
        write_design(queue.folder, plan.design)
        if retry_failed:
            queue.reconcile(retry_failed=True)
        before = queue.counts()
        if not runs and not queue.waiting():
            return Summary(before)
        # SIGTERM and SIGHUP act as Ctrl-C does.
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        scope.enter_context(handle_signals(signal.default_int_handler, *numbers))
        scope.enter_context(registered_in(queue.folder))
        interrupted, waiting = False, 0.0
        with Pool(plan, out, url, trainer) as pool:
            try:
                waiting = _Sweep(queue, pool, on_event).work(workers or default_workers(plan.devices), before)
            except KeyboardInterrupt:
                interrupted = True
                on_event(Event("message", f"stopping the workers; what is {'recorded' if runs else 'trained'} stays"))
                pool.stop()
    if not runs:
        return Summary(queue.counts(), interrupted=interrupted)
    after = queue.counts() if before["missing"] else before  # thousands of records take a second to read
    summary = Summary.between(before, after, after["missing"] if interrupted else waiting, interrupted=interrupted)
    if interrupted:
        text = f"stopped: {summary.total - summary.missing - summary.elsewhere} of {counted(summary.total, 'run')} recorded; "
        on_event(Event("message", f"{text}`{plan.design.command}` trains the rest"))
    return summary


class _Sweep:
    def __init__(self, queue: Queue[Any], pool: Pool, on_event: Callable[[Event], None]) -> None:
        self._queue, self._pool, self._report = queue, pool, on_event
        self._runs = {run.run_hash: run for run in queue.sweep.runs}
        self._training: dict[int, str] = {}  # what each worker trains, by its label
        self._reported_lost: set[str] = set()
        self._failed_starts = self._deaths = 0

    def work(self, workers: int, before: Mapping[str, int]) -> float:
        """Have all trained that nobody else trains; how many runs still wait in the end."""
        self._reconcile("a worker died")
        waiting = self._queue.waiting()
        if self._runs:
            self._report_planned(int(waiting), before)
        idle_rounds = 0
        while waiting and idle_rounds < MOST_IDLE_ROUNDS:
            for number in range(int(min(workers, waiting))):
                self._pool.start(number, workers)
            for number, event in self._pool.events():
                if event is None:
                    self._on_exit(number, workers)
                else:
                    self._on_event(number, event)
            # A run can come free after the last worker looked: another sweep's worker died, say.
            self._reconcile("a worker died")
            left = self._queue.waiting()
            idle_rounds = idle_rounds + 1 if left >= waiting else 0
            waiting = left
        return waiting

    def _report_planned(self, waiting: int, before: Mapping[str, int]) -> None:
        kept = before["complete"] + before["failed"]
        text = f"{counted(len(self._runs), 'run')}: {kept} recorded already, {waiting} to train"
        if elsewhere := len(self._runs) - kept - waiting:
            text += f", {elsewhere} being trained by another process"
        self._report(Event("planned", text, to_train=len(self._runs) - kept))

    def _event(self, kind: Any, text: str, run: PlannedRun | None) -> None:
        self._report(Event(kind, text, run, run_folder(self._queue.sweep, run, self._queue.out) if run else None))

    def _on_event(self, number: int, event: dict[str, Any]) -> None:
        self._failed_starts = 0
        if event["event"] == "started":
            self._training[number] = event["label"]
        else:
            del self._training[number]
        self._event(event["event"], event["text"], self._runs.get(event["run_hash"]))

    def _on_exit(self, number: int, workers: int) -> None:
        status = self._pool.wait(number)
        if status == 0:
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        died = f"worker {number + 1} died ({how})"
        label = self._training.pop(number, None)
        self._deaths += 1
        if self._deaths >= self._queue.most_deaths:
            raise UserError(f"{died}, as others did: {self._pool.last_words(number)}")
        if label is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise UserError(f"{died} before it could train: {self._pool.last_words(number)}")
            self._report(Event("message", f"{died} while idle: {self._pool.last_words(number)}"))
        self._reconcile(died, label)
        if self._queue.waiting():
            self._pool.start(number, workers)

    def _reconcile(self, died: str, label: str | None = None) -> None:
        """Queue again what dead workers trained, and say so. label: of what `died` trained."""
        for lost in self._queue.reconcile():
            who = died if lost.label == label else "a worker died"
            self._reported_lost.add(lost.label)
            if lost.gave_up:
                self._event(
                    "failed", f"{who} while training {lost.label}: given up after {MOST_LOSSES + 1} losses", lost.run
                )
            else:
                self._event("lost", f"{who} while training {lost.label}: queued again", lost.run)
        # Of a planned run the record may be there: its worker died between that and its last event.
        if label is not None and not self._runs and label not in self._reported_lost:  # another process has seen to it
            self._report(Event("lost", f"{died} while training {label}: another goes on with it"))
        self._reported_lost.discard(label or "")
