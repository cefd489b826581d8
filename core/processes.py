"""What a process that another one started does first: keep a pipe for events, and end with its parent."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOURCE_ROOT = Path(__file__).resolve().parents[1]
STOPPED = 143  # exit status after SIGTERM, as shells report it


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


def add_current_folder() -> None:
    """Let modules of the current folder be imported, after all others: it may have a `core` of its own."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def leave_with_parent(parent: int, on_word: Callable[[], Any] = lambda: None) -> None:
    """End this process at once when its parent is gone, however that ended: the pipe from it then closes.

    A lock that the process holds goes with it. on_word: called when the parent writes something instead.
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
