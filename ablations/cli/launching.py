"""Runs of a plan trained on this machine, or submitted to Slurm."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ablations.cli import studies as agenda
from core.capacity.room import check_room
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted
from sweeps.launch import local, site, slurm
from sweeps.launch.events import Summary
from sweeps.launch.machine import default_workers, gpus, share_of_cores
from sweeps.launch.progress import present
from sweeps.runs.folders import run_folder
from sweeps.runs.obstacles import check_places
from sweeps.runs.packing import best_workers
from sweeps.search import slurm as search_slurm
from sweeps.search.plan import SearchPlan
from sweeps.studies.plan import Plan, Sweep

SLURM_ONLY = (
    "partition",
    "account",
    "qos",
    "time",
    "gpus_per_run",
    "cpus_per_run",
    "array_parallelism",
    "sbatch",
    "dry_run",
)


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen launcher has no use for."""
    given = [
        name for name in SLURM_ONLY if getattr(arguments, name) is not None and getattr(arguments, name) is not False
    ]
    if arguments.launcher == "local" and given:
        raise UserError(f"--{given[0].replace('_', '-')} is an option of --launcher slurm: add that, or leave it out")
    if arguments.launcher == "slurm" and getattr(arguments, "workers", None) is not None:
        raise UserError("--workers counts this machine's processes; with --launcher slurm use --array-parallelism")


def request_of(arguments: argparse.Namespace) -> site.Request:
    """Slurm request of the command line, over the site's defaults."""
    options: dict[str, Any] = {
        name: getattr(arguments, name) for name in SLURM_ONLY if name not in ("sbatch", "dry_run")
    }
    return site.defaults().over(options | {"sbatch": site.parse_options(arguments.sbatch or [])})


def submit(arguments: argparse.Namespace, plan: Plan | SearchPlan, *, retry_failed: bool) -> int:
    """Submit what isn't recorded yet, or with --dry-run show what would be submitted."""
    options: dict[str, Any] = {"storage_url": arguments.storage, "retry_failed": retry_failed}
    options["dry_run"] = bool(arguments.dry_run)
    check_free(plan, arguments.out)
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


def check_free(plan: Plan | SearchPlan, out: Path) -> None:
    """Refuse files in the place of a plan's folders."""
    runs = [run_folder(plan, run, out) for run in plan.runs] if isinstance(plan, Plan) else []
    check_places(out, out / plan.study_name, runs)


def train_here(arguments: argparse.Namespace, plan: Plan, *, retry_failed: bool) -> Summary:
    """Train what a plan has no record of yet on this machine, its progress on the terminal."""
    workers = resolve_workers(arguments.workers, plan)
    with present(plan) as on_event:
        return local.run(
            plan,
            arguments.out,
            storage_url=arguments.storage,
            workers=workers,
            on_event=on_event,
            retry_failed=retry_failed,
        )


def trained_elsewhere(arguments: argparse.Namespace, count: int, size: str) -> str:
    """A line that another process trains the remaining runs, with the command that follows it."""
    follow = agenda.command("status", arguments, size)
    return f"{counted(count, 'run')} in training by another process, which records them: {follow} follows it"


def resolve_workers(wanted: int | str | None, plan: Sweep) -> int | None:
    """A number as it is; "auto" measured on the control's config, on the GPUs where there are any, else on the cores."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if plan.devices > 1:
        return default_workers(plan.devices)
    config = plan.runs[0].config
    check_room(config, len(share_of_cores(0, 1)), "name a number of workers (--workers N)")
    packing = best_workers(config, share_of_cores(0, 1), [] if config.trainer.accelerator == "cpu" else gpus())
    note = (
        f"{counted(packing.workers, 'worker')} with {counted(packing.threads, 'thread')}: "
        f"{packing.steps_per_second:.1f} steps/s together"
    )
    say(note, file=sys.stderr)
    return packing.workers


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
