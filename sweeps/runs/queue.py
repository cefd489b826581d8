"""Queue: trials of a study that concurrent workers share, whatever the kind of study.

Two classes keep the protocol: `sweeps.runs.ledger.Ledger` (a claim is one run) and `sweeps.search.queue.SearchLedger` (a
claim is a configuration under all its seeds, up to a rung).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from core.records.designs import StudyDesign
from core.records.run_record import RunRecord
from sweeps.runs.folders import RunLock, write_design
from sweeps.runs.liveness import Workplace
from sweeps.studies.plan import PlannedRun, Sweep

TAKEN_OVER = "taken over by another process"


@dataclass(kw_only=True)
class Claim:
    """Work that one process has alone until it finishes it, abandons it or puts it back.

    label, details: for people. run_hash: of the one run that it is; None where it is several. attempt: part of the name of
    W&B's run. until: the step to pause at; None = train to the end.
    """

    label: str
    lock: RunLock
    runs: tuple[PlannedRun, ...]
    attempt: int
    details: str = ""
    run_hash: str | None = None
    until: int | None = None


C = TypeVar("C", bound=Claim)


@dataclass(frozen=True)
class Ended:
    """Outcome of work on a claim. event: "finished", "failed" or "paused"; text: one line for people."""

    event: str
    text: str


@dataclass(frozen=True)
class Lost:
    """A claim whose worker died. gave_up: it died too often, and a failed record says so. run: None for a configuration."""

    label: str
    gave_up: bool
    run: PlannedRun | None = None


class Queue(Protocol[C]):
    """Trials in a storage, and the records that they follow. Every method may wait for the storage.

    sweep: the plan by which run folders, records and W&B know the study. folder: of the study, below `out`. most_deaths: of
    workers, after which a launcher gives up.
    """

    sweep: Sweep
    out: Path
    folder: Path
    workplace: Workplace
    folder_id: str
    most_deaths: float = math.inf

    def claim(self) -> tuple[C | None, bool]:
        """Claim what to train next. Returns it, or None and whether others' work may soon leave something to claim."""

    def prepare(self, claim: C, run: PlannedRun) -> RunRecord | None:
        """Make a run's folder ready for training. Returns the run's record where nothing is left to train."""

    def study_field(self, claim: C, run: PlannedRun) -> dict[str, Any]:
        """The `study` field of a run's record."""

    def report(self, claim: C, run: PlannedRun, record: RunRecord) -> bool:
        """Take note of a run's record. Returns whether the claim's next run is to be trained."""
        return True

    def finish(self, claim: C, record: RunRecord, attributes: Mapping[str, Any]) -> Ended:
        """Tell the trial what its records say, and release the claim. The records must have been written before."""

    def abandon(self, claim: C, reason: str) -> None:
        """Release a claim that was stopped, or taken over, to whoever runs the study next."""

    def put_back(self, claim: C, reason: str) -> None:
        """Release a claim so that any worker may go on with it at once."""

    def pause(self, busy: bool, idle_s: float, *, patient: bool) -> float | None:
        """Seconds to wait before the next claim after one that found nothing; None to leave.

        idle_s: since nothing was found first. patient: wait for workers whose end isn't certain yet, too.
        """

    def expected_s(self, lasted: Sequence[float]) -> float:
        """Seconds that the next claim may take, by those that this worker's claims took; at least one has."""

    def reconcile(self, *, retry_failed: bool = False) -> list[Lost]:
        """Bring trials in line with records, and queue again what dead workers trained.

        retry_failed: set records of failure aside and queue their runs again, too.
        """

    def start(self, design: StudyDesign, *, retry_failed: bool = False) -> None:
        """Write the study's design, and bring trials in line with records."""
        write_design(self.folder, design)
        self.reconcile(retry_failed=retry_failed)

    def queue_again(self, *, retry_failed: bool) -> str:
        """Reconcile, and say in one line what was queued."""

    def waiting(self) -> float:
        """Number of claims that wait for a worker; infinite while a search isn't over."""

    def counts(self) -> Mapping[str, int]:
        """Numbers of runs or configurations by state."""

    def needs_worker(self, *, left_idle: bool) -> bool:
        """True if a worker is to come back. left_idle: the last one left because it found nothing to claim."""

    def following(self) -> "Queue[Any] | None":
        """The queue that is to be worked through once this one is over; None before that, or where none follows."""
        return None
