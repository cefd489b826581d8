"""Start of a child process: it keeps a pipe for events and ends with its parent."""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SOURCE_ROOT = Path(__file__).resolve().parents[2]
# Threads that wait for one another soon sleep. As they spin by default, one that another process keeps from its core has
# the rest burn theirs: measured 20 times the CPU time, and 15 times the time, of a small run. OpenMP reads it at its import.
BRIEF_SPINNING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
STOPPED = 143  # exit status after SIGTERM, as shells report it


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """Inside, signals have another handler. Outside of the main thread, which alone may set one, they keep theirs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def module_command(name: str, *arguments: str) -> list[str]:
    """The command that runs a module in a process of its own, with `import_path` in its environment."""
    # -P: a `core` in the current folder isn't taken for ours.
    return [sys.executable, "-P", "-m", name, *arguments]


def import_path() -> dict[str, str]:
    """The variable that lets a Python process that is started with -P import these packages before any of their name."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(SOURCE_ROOT), os.environ.get("PYTHONPATH"))))}


@contextlib.contextmanager
def exported(name: str, value: str) -> Iterator[None]:
    """Inside, an environment variable has this value, for this process and its children."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def import_here(name: str) -> ModuleType:
    """Import a module that is ours, installed, or in the current folder, which is looked at last and only for such a name.

    The folder may have a `core` of its own, and its `datasets` would pass for a library that isn't installed.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def leave_with_parent(parent: int, on_word: Callable[[], Any] = lambda: None) -> None:
    """End this process, and its locks, at once when its parent is gone: the pipe from it then closes.

    on_word: called when the parent writes something instead.
    """

    def watch() -> None:
        # Not through sys.stdin: a thread that waits in it breaks the interpreter's exit.
        while os.read(parent, 4096):
            on_word()
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def take_events_pipe() -> Callable[..., None]:
    """Keep stdout for events (JSON lines) and send everything else that is printed to stderr."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(**event: Any) -> None:
        pipe.write(json.dumps(event) + "\n")
        pipe.flush()

    return emit
