"""Sweeps that run on this machine can be found, and asked to stop, by another process."""

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = ".sweeps"


@contextmanager
def registered_in(study: Path) -> Iterator[None]:
    """Be found while inside: a file named after host and process, locked for as long as the process lives."""
    folder = study / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{socket.gethostname()}.{os.getpid()}"
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def found(study: Path) -> list[tuple[str, int]]:
    """(host, process) of each sweep that runs; what dead ones left is cleared away."""
    alive = []
    for path in sorted((study / FOLDER).glob("*.*")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                host, _, process = path.name.rpartition(".")
                alive.append((host, int(process)))
            else:
                path.unlink(missing_ok=True)
    return alive


def stop(study: Path) -> tuple[list[int], list[str]]:
    """Ask the sweeps of this host to stop, as Ctrl-C does. Returns their processes, and the hosts of those out of reach."""
    here = socket.gethostname()
    alive = found(study)
    mine = [process for host, process in alive if host == here]
    for process in mine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    return mine, [host for host, _ in alive if host != here]
