"""Operations of searches (see sweeps.kinds.Operations)."""

import sys
from pathlib import Path

from optuna.storages import BaseStorage

from core.errors import UserError
from sweeps.runs import operations as runs_operations
from sweeps.runs.record_checks import Verification, settled
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.search.status import status
from sweeps.search.verify import trials_by_group
from sweeps.search.verify import verify as verify_search
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.study import CONFIRM, study_name

__all__ = ["demand", "folders", "plan_of", "queue", "status", "verify"]

plan_of = SearchPlan.from_json
queue = SearchLedger


def demand(plan: SearchPlan, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
    """Number of waiting runs of the confirmation (0 = the search isn't over), and of workers of use at once.

    Raises UserError for a search that is over, and of which nothing was trained to the end.
    """
    confirming = confirmation_here(plan, out)
    if storage is None:  # confirmation begins when the search is over
        over = confirming is not None and (out / confirming.study_name).is_dir()
    else:
        ledger = SearchLedger(plan, out, storage)
        ledger.start(plan.design, retry_failed=retry_failed)
        over = ledger.is_over()
    if over and confirming is not None:
        return runs_operations.demand(confirming, out, storage, retry_failed=retry_failed)
    if over:
        raise UserError(f"{plan.study_name} is over, and no configuration was trained to the end: see `ablate report`")
    return 0, plan.search.budget.trials * len(plan.groups) if plan.search.budget.trials else sys.maxsize


def folders(study: str) -> tuple[str, ...]:
    """The folder of a search, and that of its confirmation."""
    return study, study_name(study, CONFIRM)


def verify(study: str, out: Path, storage: BaseStorage | None) -> dict[str, Verification]:
    """Check every record of the search, and of its confirmation where that has begun."""
    own, confirming = folders(study)
    found = {own: settled(lambda: verify_search(out / own, trials_by_group(storage, own, out)))}
    return found | (runs_operations.verify(confirming, out, storage) if (out / confirming).is_dir() else {})
