"""`ablate status`: where a sweep stands, here or on a cluster. Nothing here imports torch."""

import argparse
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ablations.cli import studies
from ablations.cli.declarations import study_of
from ablations.cli.terminal import console, show_json
from core.runtime.child_process import handle_signals
from core.runtime.terminal import line
from core.runtime.units import counted, duration
from sweeps.kinds import operations_of
from sweeps.launch.launcher import tasks_of
from sweeps.launch.progress import bar, bars
from sweeps.runs.status import Row, StudyStatus, labels
from sweeps.tracking.wandb_sync import offline_runs

WATCH_S = 2.0
MOST_ROWS = 20
WORDS = {
    "queued": "queued", "running": "running", "finished": "finished", "failed": "failed", "lost": "lost",
    "stopped": "left by a sweep that was stopped", "missing": "missing", "paused": "paused", "pruned": "pruned",
}  # fmt: skip
Found = StudyStatus[Any]


def run_status(arguments: argparse.Namespace) -> int:
    """Print the status of a study, once or until it is over."""
    study, kind = study_of(arguments)
    operations = operations_of(kind)
    folders = [arguments.out / name for name in operations.folders(study)]

    def look() -> Found:
        return operations.status(study, arguments.out, arguments.storage, tasks_of=tasks_of)

    found = look()
    if arguments.json:
        more = {"wait_for_sync": _wait_for_sync(folders), "changed": getattr(arguments, "drift", "")}
        show_json(found.to_dict() | more)
        return 0
    again = studies.command("retry", arguments)
    if not arguments.watch:
        console().print(render(found, again))
        if said := getattr(arguments, "drift", ""):
            console().unwrapped(f"note: {said}")
        if waiting := _wait_for_sync(folders):
            console().print(f"{counted(waiting, 'run')} wait to be sent to W&B: {studies.command('sync', arguments)}")
        return 0
    try:
        _watch(look, found, again)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no longer watched; the sweep goes on as it was") from None
    return 0


def _watch(look: Callable[[], Found], found: Found, again: str) -> None:
    """Show a sweep until it is over: on a terminal in its place, elsewhere a line whenever its counts change."""
    out = console()
    if not out.is_terminal or out.is_dumb_terminal:
        said = _summary(found)
        while found.is_under_way:
            out.unwrapped(said)
            while found.is_under_way and _summary(found) == said:
                time.sleep(WATCH_S)
                found = look()
            said = _summary(found)
        out.print(render(found, again))
        return
    with _begun(Live(render(found, again), console=out, auto_refresh=False)) as live:
        while found.is_under_way:
            time.sleep(WATCH_S)
            found = look()
            live.update(render(found, again), refresh=True)


@contextmanager
def _begun(live: Live) -> Iterator[Live]:
    """A display begun as a whole: one interrupted in its own start would keep the cursor and what is printed later."""
    interrupts: list[int] = []
    with handle_signals(lambda number, _: interrupts.append(number), signal.SIGINT):
        live.start(refresh=True)
    try:
        if interrupts:
            raise KeyboardInterrupt
        yield live
    finally:
        live.stop()


def _wait_for_sync(folders: Sequence[Path]) -> int:
    """Number of runs that were logged offline and aren't sent yet."""
    return sum(len(offline_runs(folder).waiting) for folder in folders if folder.is_dir())


def render(found: Found, again: str) -> RenderableType:
    """The status for people."""
    head = _summary(found)
    if found.seconds_left is not None:
        head += f"; about {duration(found.seconds_left)} left"
    parts: list[RenderableType] = [line(head, style="bold")]
    if found.preempted or found.deaths:
        parts.append(
            line(
                f"so far {counted(found.preempted, 'time')} preempted and requeued, {counted(found.deaths, 'worker')} lost"
            )
        )
    parts += [line(each) for each in tasks_said(found)]
    running = found.of("running")
    table = bars()
    for row in running[:MOST_ROWS]:
        table.add(*_progress(row))
    parts.append(table)
    if len(running) > MOST_ROWS:
        parts.append(line(f"and {len(running) - MOST_ROWS} more (--json lists all)"))
    parts += [line(text, style="red" if failed else "") for text, failed in found.details()]
    failures = found.of("failed", "lost")
    for reason, rows in by_reason(failures):
        parts.append(line(f"{rows[0].state}: {labels(rows)}: {reason}", style="red"))
    if failures:
        parts.append(line(f"again: {again}"))
    for reason, rows in by_reason([row for row in found.of("missing") if row.reason]):
        parts.append(line(f"missing: {labels(rows)}: {reason}", style="yellow"))
    if found.confirmation is not None:
        parts.append(render(found.confirmation, again))
    elif found.awaited:
        parts.append(line(found.awaited))
    return Group(*parts)


def _summary(found: Found) -> str:
    counts = [f"{count} {WORDS[state]}" for state, count in found.counts.items() if count]
    total = f"{counted(sum(found.counts.values()), found.noun)}: {', '.join(counts)}" if counts else f"0 {found.noun}s"
    return f"{found.study}: {'; '.join(filter(None, (total, found.remainder)))}"


def tasks_said(found: Found) -> list[str]:
    """States of a study's array tasks, or that a launcher doesn't say, in lines."""
    if found.silence is not None:
        return [found.silence]
    states = Counter((t.launcher, t.state.lower(), "" if t.reason == "None" else t.reason) for t in found.tasks or ())
    return [
        f"{launcher}: {counted(n, 'task')} {state}{f' ({reason})' if reason else ''}"
        for (launcher, state, reason), n in states.items()
    ]


def _progress(row: Row) -> tuple[Text, RenderableType, Text]:
    left = "" if row.seconds_left is None else f"about {duration(row.seconds_left)} left"
    label, where = line(row.label), line(row.where or "", style="dim")
    if not row.step or row.steps is None:
        return label, line("starting"), where
    said = (line(f"{row.step}/{row.steps}"), line(left), where)
    return label, bar(row.step, row.steps), line("  ").join(part for part in said if part)


def by_reason(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of the same state and reason together, each with the reason."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.state, row.reason or "no reason given"), []).append(row)
    return [(reason, group) for (_, reason), group in groups.items()]
