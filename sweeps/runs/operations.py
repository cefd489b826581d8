"""What launchers need of an ablation."""

from pathlib import Path

from sweeps.runs.folders import pending, write_design
from sweeps.runs.ledger import Ledger
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import Plan

plan_of = Plan.from_json
queue = Ledger


def demand(plan: Plan, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
    """How many runs wait, and how many workers may train them at once. Without a storage: by the records alone."""
    if storage is None:
        runs = len(pending(plan, out, retry_failed=retry_failed))
    else:
        ledger = Ledger(plan, out, storage)
        write_design(ledger.folder, plan.design)
        ledger.reconcile(retry_failed=retry_failed)
        runs = ledger.waiting()
    return runs, runs
