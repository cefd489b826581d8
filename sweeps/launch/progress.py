"""A sweep's progress for people: a live display on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from core.labelled import Column, Labelled
from core.quantities import duration
from sweeps.launch.events import Event
from sweeps.planned import Plan, PlannedRun
from sweeps.progress import read_progress

BAR = 24  # columns of a terminal
Present = Callable[[Event], None]


@contextmanager
def present(plan: Plan, stream: TextIO | None = None) -> Iterator[Present]:
    """Show a sweep on a stream (None = stderr): give what it yields to the launcher as `on_event`.

    On a terminal a live display; elsewhere one line per event. NO_COLOR and TERM=dumb are honoured.
    """
    console = Console(file=stream or sys.stderr, highlight=False)
    board = Board(plan)
    if not console.is_terminal or console.is_dumb_terminal:

        def show_plain(event: Event) -> None:
            board.update(event)
            place = f"[{board.recorded}/{len(plan.runs)}] " if event.kind in ("finished", "failed") else ""
            print(f"{place}{event.text}", file=console.file, flush=True)

        yield show_plain
        return

    try:
        with Live(get_renderable=board.render, console=console, refresh_per_second=2, transient=True) as live:

            def show_live(event: Event) -> None:
                board.update(event)
                if event.kind not in ("started", "finished"):  # those are in the display
                    live.console.print(Text(event.text, style="red" if event.kind in ("failed", "lost") else ""))

            yield show_live
    finally:
        console.show_cursor()  # an interrupt inside Live's own start leaves it hidden


class Board:
    """What is known of a sweep at the moment: counts, the runs in training, and when the others will be done."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.training: dict[tuple[str, str], tuple[PlannedRun, Path, float]] = {}
        self.to_train: int | None = None
        self._durations: list[float] = []

    @property
    def recorded(self) -> int:
        """Runs with a record: this sweep's and those from before."""
        ended = self.counts["finished"] + self.counts["failed"]
        return ended if self.to_train is None else len(self.plan.runs) - self.to_train + ended

    def update(self, event: Event) -> None:
        """Take note of an event."""
        self.counts[event.kind] += 1
        if event.kind == "planned":
            self.to_train = event.to_train
        if event.run is None or event.folder is None:
            return
        key = (event.run.run_hash, event.run.fingerprint)
        if event.kind == "started":
            self.training[key] = (event.run, event.folder, time.time())
            return
        began = self.training.pop(key, None)
        if began is not None and event.kind == "finished":
            self._durations.append(time.time() - began[2])

    def seconds_left(self) -> float | None:
        """An estimate from the runs that this sweep has finished; None before the first."""
        if not self._durations or not self.training or self.to_train is None:
            return None
        mean = sum(self._durations) / len(self._durations)
        under_way = sum(min(1.0, (time.time() - began) / mean) for _, _, began in self.training.values())
        ended = self.counts["finished"] + self.counts["failed"]
        return max(0.0, mean * (self.to_train - ended - under_way) / len(self.training))

    def render(self) -> Group:
        """The display: a line of counts and a bar for each run in training."""
        left = self.seconds_left()
        head = f"{self.plan.study_name}: {self.recorded}/{len(self.plan.runs)} runs, {self.counts['failed']} failed"
        if left is not None:
            head += f", about {duration(left)} left"
        table = bars()
        # A copy: events come from another thread than the display's.
        for run, folder, _ in list(self.training.values()):
            progress = read_progress(folder)
            if progress is None:
                table.add(run.label, Text("starting"), "")
                continue
            loss = "" if progress["loss"] is None else f"NELBO {progress['loss']:.3f}"
            table.add(
                run.label, bar(progress["step"], progress["steps"]), f"{progress['step']}/{progress['steps']}  {loss}"
            )
        return Group(Text(head, style="bold"), table)


def bars() -> Labelled:
    """A table of runs in training: names, bars, and what is said of each."""
    return Labelled(None, (Column(justify="left"), Column(justify="left", folds=True)))


def bar(step: int, steps: int) -> ProgressBar:
    """How far a run is."""
    return ProgressBar(total=steps, completed=step, width=BAR)
