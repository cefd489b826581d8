"""Processes of tests, forked from one that has imported what they need: most of a fresh one's time is its imports."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from core.runtime.child_process import import_path
from core.runtime.forking import warm
from core.runtime.ranks import MODULES

LIMIT_S = 300  # on a busy machine a process takes a minute to begin


@contextlib.contextmanager
def one_template() -> Iterator[None]:
    """Inside, every worker, rank and command is forked from one template, which starts with the first of them."""
    with warm(("tests.unsynced", "ablations.__main__", "sweeps.launch.process", *MODULES), at_once=False):
        yield


def wait_until(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds. Raises AssertionError when it doesn't within limit_s."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


class Started:
    """A process under way. What it prints to stderr is in a file."""

    def __init__(self, program: str, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], log: Path):
        with warm(()) as template, log.open("wb") as file, contextlib.chdir(cwd):
            assert template is not None
            self._process = template.fork(program, arguments, os.environ | import_path() | environment, file)
        self._log, self.pid = log, self._process.pid
        self.send_signal, self.kill, self.poll = self._process.send_signal, self._process.kill, self._process.poll

    def wait(self, timeout: float = LIMIT_S) -> int:
        """The exit status, negative = the signal that ended it."""
        wait_until(lambda: self.poll() is not None, timeout)
        self._process.stdin.close()
        return self.poll()

    def communicate(self, timeout: float = LIMIT_S) -> tuple[str, str]:
        """Wait for the end; what was printed to stdout and stderr."""
        self.wait(timeout)
        with self._process.stdout:
            return self._process.stdout.read().decode(), self._log.read_text()


def start(program: str, *arguments: str, cwd: Path, log: Path, **environment: str) -> Started:
    """Start a module's main(arguments) in a session of its own. It may print 64 kB before it is listened to."""
    return Started(program, arguments, cwd, environment, log)


def logging_to(*paths: Path) -> list[psutil.Process]:
    """The processes whose log these files are: workers and ranks, by what only they have."""
    names, found = {str(path.resolve()) for path in paths}, []
    for link in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):  # ended meanwhile
            pid = int(link.parts[2])
            if os.readlink(link) in names and os.getsid(pid) == pid:
                found.append(psutil.Process(pid))
    return sorted(found, key=lambda process: process.pid)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie doesn't."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
