"""A training that is asked to pause saves a checkpoint after the step that it is in, and ends.

The request belongs to the process, as signals do: a handler makes it, and whoever trains in the process heeds it.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from core.runtime.child_process import STOPPED, handle_signals


class TrainingPausedError(SystemExit):
    """The run was left at a checkpoint. Not an Exception: training must not take it for a failure of the run."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class _State:
    heeded = False
    requested = False


def request() -> bool:
    """Ask the training under way in this process to pause. Safe in a signal handler. False when none is under way."""
    _State.requested = _State.heeded
    return _State.heeded


def requested() -> bool:
    """True if the training under way has been asked to pause."""
    return _State.requested


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, a request is heeded: TrainingPausedError is raised between two steps, or the run ends before that."""
    _State.heeded = True
    try:
        yield
    finally:
        _State.heeded = _State.requested = False


@contextmanager
def on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 (which Slurm sends before it ends a job) ask the training under way to pause.

    Where none is under way they end the process, as they do without this. In the main thread only.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if not request():
            raise SystemExit(STOPPED)

    with handle_signals(stop, signal.SIGTERM, signal.SIGUSR1):
        yield
