"""A sweep or a search as a Slurm array, and `ablate retry`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.cli import studies as agenda
from ablations.cli.looks import note_retry
from ablations.cli.options import SLURM_ONLY, check_flags
from ablations.cli.plan import make_plan, power_of
from analysis.study import Study
from analysis.verdicts.until_decided import Rule
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted
from sweeps.launch import site, slurm
from sweeps.runs.folders import pending, run_folder, write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.obstacles import check_places
from sweeps.runs.status import read_design
from sweeps.search import slurm as search_slurm
from sweeps.search.plan import SearchPlan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.storage.storage import choose_url, open_storage
from sweeps.storage.submissions import submissions
from sweeps.studies.plan import Plan, cells


def request_of(arguments: argparse.Namespace) -> site.Request:
    """What the command line asks of Slurm, over the site's defaults."""
    options: dict[str, Any] = {
        name: getattr(arguments, name) for name in SLURM_ONLY if name not in ("sbatch", "dry_run")
    }
    return site.defaults().over(options | {"sbatch": site.parse_options(arguments.sbatch or [])})


def submit(arguments: argparse.Namespace, plan: Plan | SearchPlan, *, retry_failed: bool) -> int:
    """Submit what isn't recorded yet, or with --dry-run show what would be submitted."""
    options: dict[str, Any] = {"storage_url": arguments.storage, "retry_failed": retry_failed}
    options["dry_run"] = bool(arguments.dry_run)
    _check_places(plan, arguments.out)
    if isinstance(plan, SearchPlan):
        done = search_slurm.submit(plan, arguments.out, request_of(arguments), **options)
    else:
        done = slurm.submit(plan, arguments.out, request_of(arguments), **options)
    if done is None:
        say(f"{plan.study_name}: no run waits for a worker; nothing is submitted")
        return 0
    runs = counted(done.runs, "run") if done.runs else "a search"
    for note in done.notes:
        say(f"note: {note}", file=sys.stderr)
    if done.job is None:
        say(done.text, end="")
        say(f"not submitted, and nothing is written: {runs}, {counted(done.tasks, 'array task')}", file=sys.stderr)
        return 0
    say(
        f"job {done.job}: {runs} wait{'' if done.runs > 1 else 's'} for {counted(done.tasks, 'array task')} ({done.script})"
    )
    say(f"next: {agenda.command('status', arguments, plan.size)}")
    return 0


def run_retry(arguments: argparse.Namespace) -> int:
    """Queue again what failed and what was lost; with --launcher slurm, submit it."""
    check_flags(arguments)
    if agenda.is_search(arguments.name):
        return _retry_search(arguments)
    plan = make_plan(arguments)
    agenda.check_started(plan.study_name, arguments)
    _check_places(plan, arguments.out)
    former = read_design(plan.study_name, arguments.out)
    if "adaptive" in former and _hashes(former) == _hashes(plan.design):  # what it hasn't bought isn't missing
        former = _noted(former, plan, arguments) if _failed_too(arguments) and not arguments.dry_run else former
        plan = plan.buy([(arm["name"], seed) for arm, seed in cells(former)], former)
    if arguments.dry_run:
        return submit(arguments, plan, retry_failed=_failed_too(arguments))
    url = choose_url(arguments.storage, arguments.out, arguments.out / plan.study_name)
    arguments.storage = url
    ledger = Ledger(plan, arguments.out.absolute(), open_storage(url))
    _queue_again(ledger, _failed_too(arguments))
    if arguments.launcher == "slurm":
        return submit(arguments, plan, retry_failed=False)
    if ledger.waiting():
        _say_next(plan.study_name, plan.design["command"], arguments.out, bool(power_of(plan.design)["refused"]))
    return 0


def _noted(former: Mapping[str, Any], plan: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    """The design of a sweep that is bought until decided, in which it is noted which runs are trained again after a look."""
    folder, rule = arguments.out / plan.study_name, Rule.of_design(former)
    study = Study.load(folder, former)
    assert rule is not None and study is not None  # it has a design
    failed = [cell for cell, record in study.cells.items() if record.status == "failed"]
    design = rule.designed(former, former["adaptive"]["bought"], note_retry(folder, former, failed))
    write_design(folder, design)
    return design


def _check_places(plan: Plan | SearchPlan, out: Path) -> None:
    runs = [run_folder(plan, run, out) for run in plan.runs] if isinstance(plan, Plan) else []
    check_places(out, out / plan.study_name, runs)


def _hashes(design: Mapping[str, Any]) -> list[str]:
    return [arm["hash"] for arm in design["arms"]]


def _say_next(study: str, command: str, out: Path, exploratory: bool) -> None:
    how = " --exploratory" if exploratory else ""
    how += " --launcher slurm" if submissions(out / study) else ""
    say(f"next: {command}{how} (workers that still run take them by themselves)")


def _failed_too(arguments: argparse.Namespace) -> bool:
    return bool(arguments.failed) or not arguments.lost


def _queue_again(ledger: Ledger, retry_failed: bool) -> None:
    before = len(pending(ledger.plan, ledger.out))
    waiting = ledger.waiting()
    ledger.reconcile(retry_failed=retry_failed)
    failed = len(pending(ledger.plan, ledger.out)) - before
    again = ledger.waiting() - waiting - failed
    name = ledger.plan.study_name
    say(f"{name}: {failed} failed and {again} lost, stopped or new runs queued; {ledger.waiting()} wait")


def _retry_search(arguments: argparse.Namespace) -> int:
    from ablations.cli import search_plan, searching

    plan, out = searching.make_plan(arguments), arguments.out.absolute()
    former = read_design(plan.study_name, out)
    if former.get("identity") != plan.design["identity"]:
        raise UserError(f"{plan.study_name} was last run with another space or other settings: {former.get('command')}")
    if arguments.dry_run:
        return submit(arguments, plan, retry_failed=_failed_too(arguments))
    arguments.storage = choose_url(arguments.storage, out, out / plan.study_name)
    storage = open_storage(arguments.storage)
    ledger = SearchLedger(plan, out, storage)
    lost, failed = ledger.reconcile(retry_failed=_failed_too(arguments))
    say(f"{plan.study_name}: {failed} failed and {lost} lost configurations queued again")
    confirming = confirmation_here(plan, out) if ledger.is_over() else None
    if confirming is not None and (out / confirming.study_name).is_dir():
        _queue_again(Ledger(confirming, out, storage), _failed_too(arguments))
    if arguments.launcher == "slurm":
        return submit(arguments, plan, retry_failed=False)
    if confirming is None or pending(confirming, out):
        _say_next(plan.study_name, plan.design["command"], out, bool(search_plan.refusal(plan)))
    return 0
