"""Runs of a plan trained by the launcher that the command line names."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ablations.cli import studies
from ablations.cli.options import option_owners
from core.capacity.room import check_room
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted
from sweeps.launch.events import Summary
from sweeps.launch.launcher import Launcher, Order, Submission, launchers
from sweeps.launch.machine import default_workers, gpus, share_of_cores
from sweeps.launch.obstacles import check_places
from sweeps.launch.progress import Event, present
from sweeps.runs.packing import measure_packings
from sweeps.runs.progress import CLOCK
from sweeps.studies.plan import Sweep


def launcher_of(arguments: argparse.Namespace) -> Launcher:
    """The launcher that --launcher names."""
    return launchers()[arguments.launcher]


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen launcher has no use for, and --block without its --until-decided."""
    if getattr(arguments, "block", None) and not arguments.until_decided:
        raise UserError("--block is an option of --until-decided: add that, or leave it out")
    chosen = launcher_of(arguments)
    own = {option.name for option in chosen.options}
    for option, names in option_owners().items():
        given = getattr(arguments, option.key)
        if option.name not in own and given is not None and given is not False:
            raise UserError(f"--{option.name} is an option of --launcher {names}: add that, or leave it out")
    workers = getattr(arguments, "workers", None)
    if workers is not None and not chosen.here and chosen.parallelism != "workers":
        raise UserError(
            f"--workers counts this machine's processes; with --launcher {chosen.name} use --{chosen.parallelism}"
        )
    if workers == "auto" and not chosen.here:
        raise UserError(f"--workers auto measures this machine; with --launcher {chosen.name} name a number")


def _launch(
    arguments: argparse.Namespace, plan: Sweep, retry_failed: bool, on_event: Callable[[Event], None], **more: Any
) -> Summary | Submission | None:
    launcher = launcher_of(arguments)
    options = {option.key: getattr(arguments, option.key) for option in launcher.options}
    order = Order(arguments.storage, retry_failed, on_event=on_event, options=options, **more)
    return launcher.launch(plan, arguments.out, order)


def submit(arguments: argparse.Namespace, plan: Sweep, *, retry_failed: bool) -> int:
    """Submit what isn't recorded yet, or with --dry-run show what would be submitted."""
    check_places(plan, arguments.out)
    done = _launch(arguments, plan, retry_failed, lambda event: None, workers=getattr(arguments, "workers", None))
    if done is None:
        say(f"{plan.study_name}: no run waits for a worker; nothing is submitted")
        return 0
    assert not isinstance(done, Summary)  # its workers don't run here
    for note in done.notes:
        say(f"note: {note}", file=sys.stderr)
    if done.job is None:
        say(done.text, end="")
        say(done.line, file=sys.stderr)
        return 0
    say(done.line)
    say(f"next: {studies.command('status', arguments, plan.size)}")
    return 0


def train_here(
    arguments: argparse.Namespace, plan: Sweep, *, retry_failed: bool, calibrated: Sweep | None = None
) -> Summary:
    """Train what a plan has no record of yet on this machine, its progress on the terminal.

    calibrated: the plan on whose first run `--workers auto` is measured; None = the same.
    """
    arguments.workers = workers = resolve_workers(arguments.workers, calibrated or plan)
    with present(plan) if plan.runs else nullcontext(say_event) as on_event:
        done = _launch(arguments, plan, retry_failed, on_event, workers=workers)
    assert isinstance(done, Summary)  # its workers run here
    return done


def say_event(event: Event) -> None:
    """Print an event as a line with the time."""
    say(f"{time.strftime(CLOCK)} {event.text}", file=sys.stderr)


def trained_elsewhere(arguments: argparse.Namespace, count: int, size: str) -> str:
    """A line that another process trains the remaining runs, with the command that follows it."""
    follow = studies.command("status", arguments, size)
    return f"{counted(count, 'run')} in training by another process, which records them: {follow} follows it"


def resolve_workers(wanted: int | str | None, plan: Sweep) -> int | None:
    """A number as it is; "auto" measured on the control's config, on the GPUs where there are any, else on the cores."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if plan.devices > 1:
        return default_workers(plan.devices)
    config = plan.runs[0].config
    check_room(config, len(share_of_cores(0, 1)), "name a number of workers (--workers N)")
    on_gpus = [] if config.trainer.accelerator == "cpu" else gpus()
    packing = measure_packings(config, share_of_cores(0, 1), on_gpus)[0]
    processes = f"{counted(packing.workers, 'worker')} with {counted(packing.threads, 'thread')}"
    say(f"{processes}: {packing.steps_per_second:.1f} steps/s together", file=sys.stderr)
    return packing.workers
