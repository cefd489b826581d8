"""A sweep as a Slurm array, and `ablate retry`."""

import argparse
import shlex
import sys
from typing import Any

from ablations.cli.planning import make_plan
from core.errors import UserError
from sweeps.folders import pending
from sweeps.launch import site, slurm
from sweeps.ledger import Ledger
from sweeps.plan import Plan
from sweeps.storage import choose_url, open_storage
from sweeps.study import submissions

FLAGS = ("partition", "account", "qos", "time", "gpus_per_run", "array_parallelism", "sbatch", "dry_run")


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen launcher has no use for."""
    given = [name for name in FLAGS if getattr(arguments, name) not in (None, False)]
    if arguments.launcher == "local" and given:
        raise UserError(f"--{given[0].replace('_', '-')} is an option of --launcher slurm: add that, or leave it out")
    if arguments.launcher == "slurm" and getattr(arguments, "workers", None) is not None:
        raise UserError("--workers counts this machine's processes; with --launcher slurm use --array-parallelism")


def request_of(arguments: argparse.Namespace) -> site.Request:
    """What the command line asks of Slurm, over the site's defaults."""
    options: dict[str, Any] = {name: getattr(arguments, name) for name in FLAGS if name not in ("sbatch", "dry_run")}
    return site.defaults().over(options | {"sbatch": site.parse_options(arguments.sbatch or [])})


def submit(arguments: argparse.Namespace, plan: Plan, *, retry_failed: bool) -> int:
    """Submit what isn't recorded yet, or with --dry-run show what would be submitted."""
    done = slurm.submit(
        plan,
        arguments.out,
        request_of(arguments),
        storage_url=arguments.storage,
        retry_failed=retry_failed,
        dry_run=bool(arguments.dry_run),
    )
    if done is None:
        print(f"{plan.study_name}: no run waits for a worker; nothing is submitted")
        return 0
    if done.job is None:
        print(done.script.read_text(encoding="utf-8"), end="")
        print(f"not submitted: {done.runs} runs, {done.tasks} array tasks; sbatch {shlex.quote(str(done.script))} submits it",
              file=sys.stderr)  # fmt: skip
        return 0
    words = ["ablate", "status", arguments.name, *(["--size", plan.size] if plan.size != "full" else [])]
    words += [] if str(arguments.out) == "runs" else ["--out", str(arguments.out)]
    print(f"job {done.job}: {done.runs} runs wait for {done.tasks} array tasks ({done.script})")
    print(f"next: {shlex.join(words)}")
    return 0


def run_retry(arguments: argparse.Namespace) -> int:
    """Queue again what failed and what was lost; with --launcher slurm, submit it."""
    check_flags(arguments)
    plan = make_plan(arguments)
    if not (arguments.out / plan.study_name).is_dir():
        raise UserError(f"nothing of {plan.study_name} has been run in {arguments.out.absolute()}")
    url = choose_url(arguments.storage, arguments.out, arguments.out / plan.study_name)
    arguments.storage = url
    both = arguments.failed == arguments.lost
    ledger = Ledger(plan, arguments.out.absolute(), open_storage(url))
    before = len(pending(plan, ledger.out))
    waiting = ledger.waiting()
    ledger.reconcile(retry_failed=both or arguments.failed)
    failed = len(pending(plan, ledger.out)) - before
    again = ledger.waiting() - waiting - failed
    print(f"{plan.study_name}: {failed} failed and {again} lost or stopped runs queued again; {ledger.waiting()} wait")
    if arguments.launcher == "slurm":
        return submit(arguments, plan, retry_failed=False)
    if ledger.waiting():
        how = " --launcher slurm" if submissions(arguments.out / plan.study_name) else ""
        print(f"next: {plan.design['command']}{how} (workers that still run take them by themselves)")
    return 0
