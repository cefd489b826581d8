"""`ablate retry` of a search."""

import argparse

from ablations.cli import studies
from ablations.cli.kinds.search.plan import refusal
from ablations.cli.launching import check_flags, launcher_of, submit
from ablations.cli.retry import failed_too, say_next
from core.errors import UserError
from core.records.designs import SearchDesign
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
    plan, out = studies.make_plan(arguments), arguments.out.absolute()
    former = read_design(plan.study_name, out)
    if not isinstance(former, SearchDesign) or former.identity != plan.design.identity:
        raise UserError(f"{plan.study_name} was last run with another space or other settings: {former.command}")
    if arguments.dry_run:
        return submit(arguments, plan, retry_failed=failed_too(arguments))
    arguments.storage = choose_url(arguments.storage, out, out / plan.study_name)
    storage = open_storage(arguments.storage)
    ledger = SearchLedger(plan, out, storage)
    say(ledger.queue_again(retry_failed=failed_too(arguments)))
    confirming = confirmation_here(plan, out) if ledger.is_over() else None
    if confirming is not None and (out / confirming.study_name).is_dir():
        say(Ledger(confirming, out, storage).queue_again(retry_failed=failed_too(arguments)))
    if not launcher_of(arguments).here:
        return submit(arguments, plan, retry_failed=False)
    if confirming is None or pending(confirming, out):
        say_next(plan.study_name, plan.design.command, out, bool(refusal(plan)))
    return 0
