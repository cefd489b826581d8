"""`ablate retry`: queue failed and lost runs again; with --launcher slurm, submit them."""

import argparse
from pathlib import Path

from ablations.cli.declarations import check_started
from ablations.cli.launching import check_flags, launcher_of, submit
from ablations.cli.plan import make_plan, power_of
from analysis.study import Study
from analysis.verdicts.until_decided import Rule
from core.records.designs import Design
from core.records.interim_analyses import add_retry
from core.runtime.printable import say
from sweeps.launch.launcher import launchers
from sweeps.launch.obstacles import check_places
from sweeps.runs.folders import write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.status import read_design
from sweeps.storage.storage import choose_url, open_storage
from sweeps.studies.plan import Plan


def run_retry(arguments: argparse.Namespace) -> int:
    """Queue again what failed and what was lost; with --launcher slurm, submit it."""
    check_flags(arguments)
    plan = make_plan(arguments)
    check_started(plan.study_name, arguments)
    check_places(plan, arguments.out)
    former = read_design(plan.study_name, arguments.out)
    if (
        isinstance(former, Design) and former.adaptive and _hashes(former) == _hashes(plan.design)
    ):  # what it hasn't bought isn't missing
        former = _noted(former, plan, arguments) if failed_too(arguments) and not arguments.dry_run else former
        plan = plan.buy([(arm.name, seed) for arm, seed in former.cells], former)
    if arguments.dry_run:
        return submit(arguments, plan, retry_failed=failed_too(arguments))
    url = choose_url(arguments.storage, arguments.out, arguments.out / plan.study_name)
    arguments.storage = url
    ledger = Ledger(plan, arguments.out.absolute(), open_storage(url))
    say(ledger.queue_again(retry_failed=failed_too(arguments)))
    if not launcher_of(arguments).here:
        return submit(arguments, plan, retry_failed=False)
    if ledger.waiting():
        say_next(plan.study_name, plan.design.command, arguments.out, bool(power_of(plan.design)["refused"]))
    return 0


def _noted(former: Design, plan: Plan, arguments: argparse.Namespace) -> Design:
    """The design of a sweep that is bought until decided, in which it is noted which runs are trained again after a look."""
    folder, rule = arguments.out / plan.study_name, Rule.of_design(former)
    study = Study.load(folder, former)
    assert rule is not None and former.adaptive is not None and study is not None  # it has a design
    failed = [cell for cell, record in study.cells.items() if record.status == "failed"]
    design = rule.designed(former, former.adaptive.bought, add_retry(folder, former, failed))
    write_design(folder, design)
    return design


def _hashes(design: Design) -> list[str]:
    return [arm.hash for arm in design.arms]


def say_next(study: str, command: str, out: Path, exploratory: bool) -> None:
    how = " --exploratory" if exploratory else ""
    how += "".join(f" --launcher {name}" for name, one in launchers().items() if one.has(out / study))
    say(f"next: {command}{how} (workers that still run take them by themselves)")


def failed_too(arguments: argparse.Namespace) -> bool:
    return bool(arguments.failed) or not arguments.lost
