"""One task of a search's Slurm array: it trains configurations while the budget lasts, then the runs that confirm the best.

    python -m sweeps.search.task FOLDER

As sweeps.launch.task: told to stop, it saves a checkpoint, puts its configuration back and has Slurm start it again.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from sweeps.launch import task
from sweeps.launch.task import TaskWorker, note_claim, requeue
from sweeps.launch.time_limit import Shift
from sweeps.runs.folders import keep_design, write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.liveness import Workplace
from sweeps.runs.worker import StopRequestedError, StopSignal, Train, trainer_of
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import Claim, SearchLedger
from sweeps.search.results import Results, confirmation
from sweeps.search.training import SearchWorker
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import Plan

IDLE_S = 600.0  # once nothing new is drawn: who had nothing to train for so long gives its place back
SIGHT_S = 120.0  # for the records of other hosts to be seen on this one

log = logging.getLogger("sweeps.task")


class SearchTask(SearchWorker):
    """A worker of a search that knows its place in the cluster. dismissed: it left because others train all there is."""

    def __init__(self, ledger: SearchLedger, train: Train, stop: StopSignal, lead_s: float) -> None:
        super().__init__(ledger, train, lambda **event: log.info("%s", event["text"]), stop)
        self._shift = Shift(ledger.workplace.place, lead_s)
        self._shortest_s: float | None = None
        self._idle_since: float | None = None
        self.dismissed = False

    def _may_claim(self) -> bool:
        # Whoever is new begins: what is longer than the time limit goes on in pieces.
        return self._shift.is_on() and (self._shortest_s is None or self._shift.has(self._shortest_s))

    def _may_wait(self) -> bool:
        self._idle_since = self._idle_since or time.monotonic()
        closed = all(tuner.is_closed() for tuner in self._ledger.tuners)
        self.dismissed = closed and time.monotonic() - self._idle_since > IDLE_S
        return not self.dismissed

    def _work_on(self, claim: Claim) -> None:
        note_claim(f"trial {claim.job.number}")
        began, self._idle_since = time.monotonic(), None
        super()._work_on(claim)
        lasted = time.monotonic() - began
        self._shortest_s = lasted if self._shortest_s is None else min(lasted, self._shortest_s)


def begin(job: dict[str, Any], storage: PatientStorage, workplace: Workplace, stop: StopSignal) -> Callable[[], None]:
    """The work of a search's task."""
    plan, out = SearchPlan.from_json(job["plan"]), Path(job["out"])
    ledger = SearchLedger(plan, out, storage, workplace)
    keep_design(ledger.folder, plan.design)
    train, lead_s = trainer_of(job["trainer"]), job["lead_s"]
    searcher = SearchTask(ledger, train, stop, lead_s)

    def work() -> None:
        try:
            searcher.work()
        except StopRequestedError:
            log.info("told to stop")
        if searcher.dismissed:
            log.info("nothing to train for %.0f s: others train what is left", IDLE_S)
        elif ledger.is_over():
            confirming = _confirming(ledger, confirmation_of(ledger), storage)
            task.work(TaskWorker(confirming, train, stop, lead_s), confirming, lead_s)
        elif workplace.place is not None:
            requeue(workplace.place, lead_s)

    return work


def confirmation_of(ledger: SearchLedger) -> Plan:
    """Plan of the confirmation of a finished search, by its records.

    Raises UserError where nothing was trained to the end, and where records that the ledger knows can't be seen.
    """
    told = ledger.complete_arms()
    if not told:
        raise UserError("no configuration was trained to the end, so there is nothing to confirm")
    deadline = time.monotonic() + SIGHT_S
    while True:
        # A file server may show other hosts' files late, and whoever sees fewer would confirm something else.
        results = Results.load(ledger.folder, ledger.plan.design)
        if results is not None and told <= {found.arm for found in results.complete}:
            return confirmation(ledger.plan, results)
        if time.monotonic() > deadline:
            raise UserError(
                f"{ledger.folder}: records of configurations that the ledger knows as complete aren't there"
            )
        time.sleep(task.RETRY_S)


def _confirming(ledger: SearchLedger, plan: Plan, storage: PatientStorage) -> Ledger:
    confirming = Ledger(plan, ledger.out, storage, ledger.workplace)
    write_design(ledger.out / plan.study_name, plan.design)
    confirming.reconcile()
    return confirming


if __name__ == "__main__":
    sys.exit(task.main(Path(sys.argv[1]), begin=begin))
