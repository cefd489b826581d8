"""A sweep's progress for people: a live display on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from core.runtime.printable import one_line
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import Column, Labelled
from core.runtime.units import duration
from sweeps.runs.progress import CLOCK, LINE_S, read_progress
from sweeps.studies.plan import PlannedRun, Sweep

BAR = 24  # columns of a terminal
MOST_NAMED = 4  # runs in one line


@dataclass(frozen=True)
class Event:
    """Something that happened to a sweep. text: one line for people.

    kind "planned" comes first; "lost" is a dead worker's run that is queued again, or one that
    another process has.
    """

    kind: Literal["planned", "started", "finished", "paused", "failed", "lost", "message"]
    text: str
    run: PlannedRun | None = None
    folder: Path | None = None
    to_train: int | None = None  # with "planned"


Present = Callable[[Event], None]


@contextmanager
def present(plan: Sweep, stream: TextIO | None = None) -> Iterator[Present]:
    """Show a sweep on a stream (None = stderr): give what it yields to the launcher as `on_event`.

    On a terminal a live display; elsewhere one line per event. NO_COLOR and TERM=dumb are honoured.
    """
    console = Terminal(file=stream or sys.stderr)
    board = Board(plan)
    if not console.is_terminal or console.is_dumb_terminal:
        with _plain(board, console.file) as show_plain:
            yield show_plain
        return

    try:
        with Live(get_renderable=board.render, console=console, refresh_per_second=2, transient=True) as live:

            def show_live(event: Event) -> None:
                board.update(event)
                if event.kind not in ("started", "finished"):  # those are in the display
                    live.console.print(line(event.text, "red" if event.kind in ("failed", "lost") else ""))

            yield show_live
    finally:
        console.show_cursor()  # an interrupt inside Live's own start leaves it hidden


@contextmanager
def _plain(board: "Board", stream: IO[str]) -> Iterator[Present]:
    """A line for each event, and one each half minute while runs train."""
    turn, over = threading.Lock(), threading.Event()

    def write(text: str) -> None:
        print(f"{time.strftime(CLOCK)} {one_line(text)}", file=stream, flush=True)

    def show(event: Event) -> None:
        with turn:
            board.update(event)
            ending = board.ended(event) if event.kind in ("finished", "failed") else ""
            write(f"{event.text}{ending}")

    def report() -> None:
        while not over.wait(LINE_S):
            with turn:
                if board.training:
                    write(board.under_way())

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield show
    finally:
        over.set()
        reporter.join()


class Board:
    """State of a running study: counts, the runs in training, and when the others will be done."""

    def __init__(self, plan: Sweep) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.training: dict[tuple[str, str], tuple[PlannedRun, Path, float]] = {}
        self.to_train: int | None = None
        self._durations: list[float] = []
        self._most = 1  # runs that trained at the same time

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
            self._most = max(self._most, len(self.training))
            return
        began = self.training.pop(key, None)
        if began is not None and event.kind == "finished":
            self._durations.append(time.time() - began[2])

    def seconds_left(self) -> float | None:
        """An estimate from the runs that this sweep has finished, or else from how far the first ones are; None before."""
        if self.to_train is None:
            return None
        now, training = time.time(), list(self.training.values())
        done = [] if self._durations else [(_share(folder), now - began) for _, folder, began in training]
        durations = self._durations or [lasted / share for share, lasted in done if share]
        ahead = self.to_train - self.counts["finished"] - self.counts["failed"]
        if not durations or not ahead:
            return None
        mean = sum(durations) / len(durations)
        under_way = sum(min(1.0, (now - began) / mean) for _, _, began in training)
        return max(0.0, mean * (ahead - under_way) / min(self._most, ahead))

    def ended(self, event: Event) -> str:
        """The end of the line that says that a run has ended: its loss, how many have, and the time left."""
        return " · ".join(
            ["", *filter(None, (_loss(read_progress(event.folder) if event.folder else None), self._so_far()))]
        )

    def under_way(self) -> str:
        """A line of what trains."""
        runs = [f"{run.label}{_how_far(folder)}" for run, folder, _ in list(self.training.values())]
        more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
        return f"training {', '.join(runs[:MOST_NAMED])}{more} · {self._so_far()}"

    def _so_far(self) -> str:
        left = self.seconds_left()
        return f"{self.recorded} of {len(self.plan.runs)} done" + (f", about {duration(left)} left" if left else "")

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
            step, steps = progress["step"], progress["steps"]
            table.add(run.label, bar(step, steps), f"{step}/{steps}  {_loss(progress)}")
        return Group(line(head, "bold"), table)


def _loss(progress: dict[str, Any] | None) -> str:
    return "" if progress is None or progress["loss"] is None else f"NELBO {progress['loss']:.3f}"


def _how_far(folder: Path) -> str:
    progress = read_progress(folder)
    return "" if progress is None else f" ({progress['step']}/{progress['steps']} {_loss(progress)})".replace(" )", ")")


def _share(folder: Path) -> float:
    progress = read_progress(folder)
    return 0.0 if progress is None else progress["step"] / progress["steps"]


def bars() -> Labelled:
    """A table of runs in training: names, bars, and what is said of each."""
    return Labelled(None, (Column(justify="left"), Column(justify="left", folds=True)))


def bar(step: int, steps: int) -> ProgressBar:
    """Progress of a run."""
    return ProgressBar(total=steps, completed=step, width=BAR)
