"""`ablate status` and `ablate cancel`: a sweep that runs elsewhere, or in another terminal. Nothing here imports torch."""

import argparse
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablations.cli import agenda
from ablations.cli.commands import console, show_json
from core.errors import UserError
from sweeps import scheduler
from sweeps.launch import presence
from sweeps.spec import study_name
from sweeps.status import RunStatus, Status, status
from sweeps.study import job_name, submissions

WATCH_S = 2.0
MOST_ROWS = 20
WORDS = {
    "queued": "queued", "running": "running", "finished": "finished", "failed": "failed", "lost": "lost",
    "stopped": "left by a sweep that was stopped", "missing": "never queued",
}  # fmt: skip


def run_status(arguments: argparse.Namespace) -> int:
    """Where a sweep stands, once or until it is over."""
    study = study_of(arguments)
    found = status(study, arguments.out, arguments.storage)
    if arguments.json:
        show_json(found.to_dict())
        return 0
    again = _command("retry", arguments)
    if not arguments.watch:
        console().print(render(found, again))
        return 0
    out = Console(highlight=False)
    with Live(render(found, again), console=out, auto_refresh=False) as live:
        while found.of("queued", "running"):
            time.sleep(WATCH_S)
            found = status(study, arguments.out, arguments.storage)
            live.update(render(found, again), refresh=True)
    return 0


def run_cancel(arguments: argparse.Namespace) -> int:
    """Stop a sweep: its Slurm jobs, and its processes on this machine. What is recorded stays."""
    study = study_of(arguments)
    folder = arguments.out / study
    if not folder.is_dir():
        raise UserError(f"nothing of {study} has been run in {arguments.out.absolute()}")
    ended = 0
    if submissions(folder):
        name = job_name(study, arguments.out)
        try:
            tasks = scheduler.tasks(name=name)
            if tasks:
                scheduler.cancel(name)
        except scheduler.SlurmError as error:
            raise UserError(f"Slurm doesn't cancel {name}: {error}") from None
        ended = len(tasks)
    mine, elsewhere = presence.stop(folder)
    print(f"{study}: {ended} array tasks cancelled, {len(mine)} sweeps on this machine asked to stop")
    for host in elsewhere:
        print(f"one runs on {host}: cancel it there", file=sys.stderr)
    if ended or mine:
        print(f"what is recorded stays; `{_command('run', arguments)}` trains the rest")
    return 0


def study_of(arguments: argparse.Namespace) -> str:
    """The study that NAME and --size mean: where no size is named, the only one that was run."""
    name, ablation = agenda.resolve(arguments.name)
    return study_name(name, agenda.meant_size(name, ablation, arguments.out, arguments.size))


def render(found: Status, again: str) -> RenderableType:
    """The status for people."""
    counts = [f"{count} {WORDS[state]}" for state, count in found.counts.items() if count]
    head = f"{found.study}: {len(found.runs)} runs: {', '.join(counts)}"
    if found.seconds_left is not None:
        head += f"; about {duration(found.seconds_left)} left"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if found.preempted or found.deaths:
        parts.append(Text(f"so far {found.preempted} times preempted and requeued, {found.deaths} workers lost"))
    parts += [Text(line) for line in _tasks(found)]
    running = found.of("running")
    table = Table.grid(padding=(0, 2))
    for run in running[:MOST_ROWS]:
        table.add_row(*_progress(run))
    parts.append(table)
    if len(running) > MOST_ROWS:
        parts.append(Text(f"and {len(running) - MOST_ROWS} more (--json lists all)"))
    failures = found.of("failed", "lost")
    for reason, runs in _by_reason(failures):
        parts.append(Text(f"{runs[0].state}: {_labels(runs)}: {reason}", style="red"))
    if failures:
        parts.append(Text(f"again: {again}"))
    return Group(*parts)


def _tasks(found: Status) -> list[str]:
    if found.silence is not None:
        return [f"Slurm doesn't say how its tasks are: {found.silence}"]
    states = Counter((t.state.lower(), "" if t.reason == "None" else t.reason) for t in found.tasks or ())
    return [f"Slurm: {n} tasks {state}{f' ({reason})' if reason else ''}" for (state, reason), n in states.items()]


def _progress(run: RunStatus) -> tuple[RenderableType, ...]:
    left = "" if run.seconds_left is None else f"about {duration(run.seconds_left)} left"
    label, where = Text(f"{run.arm} seed {run.seed}"), Text(run.where or "", style="dim")
    if run.step is None or run.steps is None:
        return label, Text("starting"), "", where
    bar = ProgressBar(total=run.steps, completed=run.step, width=24)
    return label, bar, Text(f"{run.step}/{run.steps}  {left}"), where


def _by_reason(runs: list[RunStatus]) -> list[tuple[str, list[RunStatus]]]:
    groups: dict[tuple[str, str], list[RunStatus]] = {}
    for run in runs:
        groups.setdefault((run.state, run.reason or "no reason given"), []).append(run)
    return [(reason, group) for (_, reason), group in groups.items()]


def _labels(runs: list[RunStatus]) -> str:
    shown = ", ".join(f"{run.arm} seed {run.seed}" for run in runs[:5])
    return shown + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")


def _command(verb: str, arguments: argparse.Namespace) -> str:
    words = ["ablate", verb, arguments.name, *(["--size", arguments.size] if arguments.size else [])]
    return shlex.join([*words, *([] if arguments.out == Path("runs") else ["--out", str(arguments.out)])])


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
