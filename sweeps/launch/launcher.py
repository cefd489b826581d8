"""Launchers: where workers run, by the name that `--launcher` takes.

A launcher is one file in sweeps/launch/launchers with a LAUNCHER at module level, or an object of an installed package that
is named as an entry point of the group "ablate.launchers". Its module is imported to show its options: what is heavy is
imported in its functions.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from core.errors import UserError
from core.runtime.units import counted
from sweeps.launch import launchers as package
from sweeps.launch.events import Summary
from sweeps.runs.array_tasks import Task

GROUP = "ablate.launchers"


@dataclass(frozen=True)
class Option:
    """An option of the command line that only this launcher has a use for: `--name`, without the dashes.

    kind: a text; a whole number; a flag; or a text that may be given several times.
    """

    name: str
    help: str
    metavar: str = ""
    kind: Literal["text", "whole", "flag", "many"] = "text"

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Order:
    """Request to a launcher beside the plan. options: its own, by key; those not given are None or False.

    storage_url: None = $ABLATE_STORAGE, or a journal in the folder of runs. workers: processes on this machine; None = one
    per GPU or core. on_event: takes each sweeps.launch.progress.Event of a launcher whose workers run here.
    """

    storage_url: str | None = None
    retry_failed: bool = False
    workers: int | None = None
    on_event: Callable[[Any], None] = lambda event: None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """An array that was submitted; or, where job is None, that would be, and nothing of it was written.

    text: of the script. runs: that wait; 0 = a search, which draws them. notes: of what it doesn't ask for, and what it does
    without having been told. noun: what a task is.
    """

    script: Path
    text: str
    tasks: int
    runs: int
    job: str | None
    notes: tuple[str, ...] = ()
    noun: str = "array task"

    @property
    def line(self) -> str:
        """Line on what was submitted, or would be."""
        runs, tasks = counted(self.runs, "run") if self.runs else "a search", counted(self.tasks, self.noun)
        if self.job is None:
            return f"not submitted, and nothing is written: {runs}, {tasks}"
        return f"job {self.job}: {runs} wait{'' if self.runs > 1 else 's'} for {tasks} ({self.script})"


@dataclass(frozen=True)
class Cancelled:
    """Result of a cancellation. text: what it counts, for people. notes: lines on what is out of reach."""

    count: int
    text: str
    notes: tuple[str, ...] = ()


class Launcher(Protocol):
    """A place for workers.

    here: they end with this process, which waits for them. title: of its options in `--help`. parallelism: the option that
    limits its workers, where `--workers` doesn't.
    """

    name: str
    here: bool
    title: str
    options: Sequence[Option]
    parallelism: str

    def launch(self, plan: Any, out: Path, order: Order) -> Summary | Submission | None:
        """Have a plan's runs trained: Summary where they were `here`; else what was submitted, or None where nothing waits.

        plan: a sweeps.studies.plan.Sweep, whose module takes longer to import than all else here.

        Raises UserError for what can't be done as asked.
        """
        ...

    def cancel(self, study: Path, folders: Sequence[Path]) -> Cancelled:
        """End the workers of a study. folders: its own and those of what follows it. Raises UserError."""
        ...

    def has(self, study: Path) -> bool:
        """True if the study in a folder was submitted by this launcher."""
        ...

    def tasks(self, study: Path) -> Sequence[Task]:
        """The tasks of a study that it submitted which wait or run; not asked of one whose workers are `here`.

        Raises UserError, a sentence, where it isn't known.
        """
        ...


@functools.cache
def launchers() -> Mapping[str, Launcher]:
    """Every launcher by name, those of installed packages after ours."""
    from importlib.metadata import entry_points  # takes longer than all else of `--help`

    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found = {name: importlib.import_module(f"{package.__name__}.{name}").LAUNCHER for name in names}
    return found | {entry.name: entry.load() for entry in entry_points(group=GROUP)}


def tasks_of(study: Path) -> tuple[tuple[Task, ...] | None, str | None]:
    """The tasks of the study in a folder that wait or run; None where a launcher doesn't say, with the reason."""
    apart = [launcher for launcher in launchers().values() if not launcher.here and launcher.has(study)]
    asked = [launcher for launcher in apart if hasattr(launcher, "tasks")]  # those of earlier versions don't have it
    try:
        return tuple(task for launcher in asked for task in launcher.tasks(study)), None
    except UserError as error:
        return None, str(error)
