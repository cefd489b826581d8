"""`ablate retry` of a search."""

import argparse

from ablations.cli.kinds.search.plan import make_plan, refusal
from ablations.cli.launching import check_flags, submit
from ablations.cli.retry import failed_too, queue_again, say_next
from core.errors import UserError
from core.records.design import SearchDesign
from core.runtime.printable import say
from sweeps.runs.folders import pending
from sweeps.runs.ledger import Ledger
from sweeps.runs.status import read_design
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.storage.storage import choose_url, open_storage


def run_retry(arguments: argparse.Namespace) -> int:
    """Queue failed and lost configurations, and runs of the confirmation, again."""
    check_flags(arguments)
    plan, out = make_plan(arguments), arguments.out.absolute()
    former = read_design(plan.study_name, out)
    if not isinstance(former, SearchDesign) or former.identity != plan.design.identity:
        raise UserError(f"{plan.study_name} was last run with another space or other settings: {former.command}")
    if arguments.dry_run:
        return submit(arguments, plan, retry_failed=failed_too(arguments))
    arguments.storage = choose_url(arguments.storage, out, out / plan.study_name)
    storage = open_storage(arguments.storage)
    ledger = SearchLedger(plan, out, storage)
    lost, failed = ledger.reconcile(retry_failed=failed_too(arguments))
    say(f"{plan.study_name}: {failed} failed and {lost} lost configurations queued again")
    confirming = confirmation_here(plan, out) if ledger.is_over() else None
    if confirming is not None and (out / confirming.study_name).is_dir():
        queue_again(Ledger(confirming, out, storage), failed_too(arguments))
    if arguments.launcher == "slurm":
        return submit(arguments, plan, retry_failed=False)
    if confirming is None or pending(confirming, out):
        say_next(plan.study_name, plan.design.command, out, bool(refusal(plan)))
    return 0
