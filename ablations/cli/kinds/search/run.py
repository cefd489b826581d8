"""`ablate run` of a search."""

import argparse
from dataclasses import replace
from typing import Any

from ablations.cli import studies
from ablations.cli.command import INTERRUPTED
from ablations.cli.kinds.search.plan import refusal
from ablations.cli.launching import check_flags, launcher_of, submit, train_here, trained_elsewhere
from ablations.cli.terminal import console
from core.data.corpora import describe as describe_data
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted
from sweeps.search.results import Results, confirmation
from sweeps.storage.storage import choose_url


def run_run(arguments: argparse.Namespace) -> int:
    """Search, then confirm the winners and the control on fresh seeds."""
    if arguments.until_decided:
        raise UserError(f"--until-decided is for ablations; {arguments.name} is a search, which its budget ends")
    check_flags(arguments)
    planned = studies.make_plan(arguments)
    if (refused := refusal(planned)) and not arguments.exploratory:
        raise UserError(f"{refused} (--exploratory runs it anyway)")
    say("\n".join(describe_data([planned.resolver.control.data])))
    if not launcher_of(arguments).here:
        return submit(arguments, planned, retry_failed=arguments.retry_failed)
    calibrated = replace(planned, runs=planned.control_runs)
    arguments.storage = choose_url(
        arguments.storage, arguments.out.absolute(), arguments.out.absolute() / planned.study_name
    )
    options: dict[str, Any] = {"retry_failed": arguments.retry_failed, "calibrated": calibrated}
    searched = train_here(arguments, planned, **options)
    if searched.interrupted:
        return INTERRUPTED
    results = Results.load(arguments.out / planned.study_name, planned.design)
    out = console()
    said = ", ".join(f"{count} {state}" for state, count in sorted(searched.states.items()))
    out.print(f"{planned.study_name}: {said}")
    if results is None or not results.complete:
        raise RuntimeError(
            "no configuration was trained to the end, so there is nothing to confirm: see the failures above"
        )
    confirming = confirmation(planned, results)
    summary = train_here(arguments, confirming, **options)
    if summary.interrupted:
        return INTERRUPTED
    failed = summary.failed + summary.failed_before
    out.print(
        f"confirmation: {counted(summary.done + summary.reused, 'run')} on fresh seeds, {failed} failed, "
        f"{summary.missing} missing"
    )
    if summary.elsewhere:
        out.print(trained_elsewhere(arguments, summary.elsewhere, planned.size))
    out.print(f"next: {studies.command('report', arguments, planned.size)}")
    return 1 if failed or summary.missing else 0
