"""A search on a Slurm cluster: one array whose tasks share it."""

from pathlib import Path

from core.errors import UserError
from sweeps.launch.site import Request
from sweeps.launch.slurm import Array, Submission, gpus_of, write
from sweeps.runs import slurm as scheduler
from sweeps.runs.folders import pending, write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.worker import TRAINER
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.storage.storage import choose_url, open_storage

PROGRAM = "sweeps.search.task"


def submit(
    plan: SearchPlan,
    out: Path,
    request: Request,
    *,
    storage_url: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    trainer: str = TRAINER,
) -> Submission | None:
    """As sweeps.launch.slurm.submit; None where the search is over and confirmed."""
    gpus, notes = gpus_of(plan.study_name, plan.devices, [plan.resolver.control], request)
    out = out.absolute()
    url = choose_url(storage_url, out, out / plan.study_name)
    confirming = confirmation_here(plan, out)
    if dry_run:
        # Confirmation begins when the search is over.
        over = confirming is not None and (out / confirming.study_name).is_dir()
    else:
        if not scheduler.is_installed():
            scheduler.call("sbatch")
        storage = open_storage(url)
        ledger = SearchLedger(plan, out, storage)
        write_design(ledger.folder, plan.design)
        ledger.reconcile(retry_failed=retry_failed)
        over = ledger.is_over()
        if over and confirming is None:
            raise UserError(
                f"{plan.study_name} is over, and no configuration was trained to the end: see `ablate report`"
            )
        if over and confirming is not None:
            Ledger(confirming, out, storage).reconcile(retry_failed=retry_failed)
    runs = len(pending(confirming, out, retry_failed=retry_failed)) if over and confirming is not None else 0
    if over and not runs:
        return None
    trials = plan.search.budget.trials
    most = runs or (trials * len(plan.groups) if trials else request.array_parallelism)
    array = Array(min(most, request.array_parallelism), gpus, trainer, PROGRAM, notes)
    return write(plan, out, url, request, array, runs, dry_run=dry_run)
