"""What launchers need of a search."""

import sys
from pathlib import Path

from core.errors import UserError
from sweeps.runs import operations as runs_operations
from sweeps.runs.folders import write_design
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.storage.retrying import PatientStorage

plan_of = SearchPlan.from_json
queue = SearchLedger


def demand(plan: SearchPlan, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
    """How many runs of the confirmation wait (0 = the search isn't over), and how many workers may be of use at once.

    Raises UserError for a search that is over, and of which nothing was trained to the end.
    """
    confirming = confirmation_here(plan, out)
    if storage is None:  # confirmation begins when the search is over
        over = confirming is not None and (out / confirming.study_name).is_dir()
    else:
        ledger = SearchLedger(plan, out, storage)
        write_design(ledger.folder, plan.design)
        ledger.reconcile(retry_failed=retry_failed)
        over = ledger.is_over()
    if over and confirming is not None:
        return runs_operations.demand(confirming, out, storage, retry_failed=retry_failed)
    if over:
        raise UserError(f"{plan.study_name} is over, and no configuration was trained to the end: see `ablate report`")
    return 0, plan.search.budget.trials * len(plan.groups) if plan.search.budget.trials else sys.maxsize
