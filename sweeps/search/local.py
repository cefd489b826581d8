"""A search on this machine: worker processes, watched and replaced when they die, and the confirmation of what they found."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError
from sweeps.launch.events import Event
from sweeps.launch.local import MOST_FAILED_STARTS, stop_signals
from sweeps.launch.machine import default_workers
from sweeps.launch.pool import Pool
from sweeps.launch.running_sweeps import present_in
from sweeps.runs.folders import write_design
from sweeps.runs.obstacles import check_places
from sweeps.runs.worker import TRAINER
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import SearchLedger
from sweeps.storage.storage import choose_url, open_storage

MOST_DEATHS = 20  # of workers, in one call


def search(
    plan: SearchPlan,
    out: Path,
    *,
    storage_url: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    retry_failed: bool = False,
    trainer: str = TRAINER,
) -> tuple[Counter[str], bool]:
    """Search until the budget is spent. Returns trials by state, and whether it was interrupted before.

    Arguments as of sweeps.launch.local.run. Ctrl-C, SIGTERM and SIGHUP stop the workers; the same call goes on.
    Raises UserError for a storage that can't be used and for workers that can't start or keep dying.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    out = out.absolute()
    check_places(out, out / plan.study_name, ())
    url = choose_url(storage_url, out, out / plan.study_name)
    ledger = SearchLedger(plan, out, open_storage(url))
    write_design(ledger.folder, plan.design)
    if retry_failed:
        ledger.reconcile(retry_failed=True)
    if ledger.is_over():
        return ledger.counts(), False
    with (
        stop_signals(),
        present_in(ledger.folder),
        Pool(plan, out, url, trainer, program="sweeps.search.training") as pool,
    ):
        try:
            _watch(ledger, pool, workers or default_workers(plan.devices), on_event)
        except KeyboardInterrupt:
            on_event(Event("message", "stopping the workers; what is trained stays"))
            pool.stop()
            return ledger.counts(), True
    return ledger.counts(), False


def _watch(ledger: SearchLedger, pool: Pool, workers: int, on_event: Callable[[Event], None]) -> None:
    silent_deaths = deaths = 0
    for number in range(workers):
        pool.start(number, workers)
    for number, event in pool.events():
        if event is not None:
            silent_deaths = 0
            kind = "failed" if event["event"] == "failed" else "message"
            on_event(Event(kind, event["text"]))  # type: ignore[arg-type]
            continue
        status = pool.wait(number)
        if status == 0:
            continue
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        deaths, silent_deaths = deaths + 1, silent_deaths + 1
        if silent_deaths >= MOST_FAILED_STARTS or deaths >= MOST_DEATHS:
            raise UserError(f"worker {number + 1} died ({how}), as others did: {pool.last_words(number)}")
        on_event(Event("lost", f"worker {number + 1} died ({how}): another goes on with what it trained"))
        pool.start(number, workers)
