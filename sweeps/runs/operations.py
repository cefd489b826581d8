"""Operations of every kind of study whose plan is of runs (see sweeps.kinds.Operations)."""

from pathlib import Path

from optuna.storages import BaseStorage

from sweeps.runs.folders import pending
from sweeps.runs.ledger import Ledger
from sweeps.runs.record_checks import Verification, settled
from sweeps.runs.status import status
from sweeps.runs.verify import trials_by_run
from sweeps.runs.verify import verify as verify_runs
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import Plan

__all__ = ["demand", "folders", "plan_of", "queue", "status", "verify"]

plan_of = Plan.from_json
queue = Ledger


def demand(plan: Plan, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
    """Number of waiting runs, and of workers that may train them at once. Without a storage: by the records alone."""
    if storage is None:
        runs = len(pending(plan, out, retry_failed=retry_failed))
    else:
        ledger = Ledger(plan, out, storage)
        ledger.start(plan.design, retry_failed=retry_failed)
        runs = ledger.waiting()
    return runs, runs


def folders(study: str) -> tuple[str, ...]:
    """The study's own folder alone."""
    return (study,)


def verify(study: str, out: Path, storage: BaseStorage | None) -> dict[str, Verification]:
    """Check every record of the study."""
    return {study: settled(lambda: verify_runs(out / study, trials_by_run(storage, study)))}
