"""`ablate run`: train what isn't recorded yet, here or on a cluster."""

import argparse

from ablations.cli import studies
from ablations.cli.command import INTERRUPTED
from ablations.cli.declarations import say_before
from ablations.cli.decode import decode_here
from ablations.cli.launching import check_flags, launcher_of, submit, train_here, trained_elsewhere
from ablations.cli.plan import make_plan, power_of
from ablations.cli.terminal import console
from ablations.cli.until_decided import run_until_decided
from analysis.verdicts.sequential_log import check_fixed
from core.data.corpora import describe
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.terminal import line
from core.runtime.units import counted


def run_run(arguments: argparse.Namespace) -> int:
    """Train what isn't recorded yet: here, or on a cluster."""
    check_flags(arguments)
    plan = make_plan(arguments)
    refused = power_of(plan.design)["refused"]
    if refused and not arguments.exploratory:
        raise UserError(f"{refused} (--exploratory runs it anyway)")
    say("\n".join(describe(run.config.data for run in plan.runs)))
    if arguments.until_decided:
        return run_until_decided(arguments, plan)
    folder = arguments.out / plan.study_name
    check_fixed(folder, plan.design)
    say_before(folder, plan)
    if not launcher_of(arguments).here:
        return submit(arguments, plan, retry_failed=arguments.retry_failed)
    summary = train_here(arguments, plan, retry_failed=arguments.retry_failed)
    if summary.interrupted:
        return INTERRUPTED
    out = console()
    failed = summary.failed + summary.failed_before
    undecoded = 0
    if plan.design.decoders is not None:
        undecoded = decode_here(arguments, plan, out)
    out.print(
        f"{plan.study_name}: {counted(summary.done, 'run')} trained, {summary.reused} recorded before, {failed} failed, "
        f"{summary.missing} missing"
    )
    if summary.elsewhere:
        out.print(trained_elsewhere(arguments, summary.elsewhere, plan.size))
    out.print(f"next: {studies.command('report', arguments, plan.size)}")
    if failed:
        out.print(line("some runs failed", "red") + line(": the report names them; --retry-failed runs them again"))
    return 1 if failed or summary.missing or undecoded else 0
