"""Python programs that nobody vouches for, run under limits in a place of their own (core.execution.confine is how)."""

import contextlib
import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from core.errors import UserError
from core.execution import permitted

SCRIPT = Path(__file__).with_name("confine.py")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/null")
GRACE_S = 5.0  # beyond a program's own time: for starting it, and for ending what it started
USERS = range(1_000_000_000, 2_000_000_000), range(20_000, 60_000)  # nobody's; the second where a container has few


@dataclass(frozen=True)
class Limits:
    """Limits of a program, which is one process: seconds by the clock and of computing, bytes of memory, of a file and of
    all files together, threads at once, open files."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory: int = 2**30
    file: int = 2**20
    disk: int = 2**24
    threads: int = 32
    files: int = 64

    def of_process(self) -> dict[str, int]:
        """By their names in Python's `resource`; none may be above what this process itself is allowed."""
        wanted = {
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file,
            "RLIMIT_NPROC": self.threads,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_CORE": 1,  # 0 would still hand a dump to the machine's collector (man 5 core)
        }
        hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in wanted}
        return {name: value if hard[name] < 0 else min(value, hard[name]) for name, value in wanted.items()}


@dataclass(frozen=True)
class Ended:
    """Outcome of a program: its exit status, the negated number of the signal that ended it, or None where it was ended
    from outside; whether it ran out of time; how it was confined."""

    status: int | None
    timed_out: bool = False
    namespaces: bool = False
    other_user: bool = False
    failed: str | None = None  # to start


@dataclass(frozen=True)
class Ran(Ended):
    """The same, and the beginning of what it wrote; flooded: it wrote more, and was ended for it."""

    output: bytes = b""
    flooded: bool = False


class Confined:
    """A program that runs; leaving the `with` block ends it."""

    def __init__(self, process: subprocess.Popen[bytes], report: int, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.process, self._report, self._folder = process, report, folder

    def __enter__(self) -> "Confined":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> Ended:
        """End the program if it still runs, and clean up. Returns what became of it."""
        if self._report < 0:
            return Ended(None)
        self.process.terminate()  # the script outside it hears this, and kills what is inside
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        said = _read(self._report, 4096)
        os.close(self._report)
        self._report = -1
        self._folder.cleanup()
        found: dict[str, Any] = {"status": None}
        for line in said.splitlines():
            found |= json.loads(line)
        return Ended(**found)

    def wait(self, seconds: float) -> Ended:
        """Wait for its end, so long at most; then end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.end()


def start(
    program: str,
    *,
    limits: Limits = Limits(),
    arguments: Sequence[str] = (),
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> Confined:
    """Start a Python program with the standard library, an empty environment and an empty folder of its own."""
    user = _user()
    folder = tempfile.TemporaryDirectory(prefix="confined-", ignore_cleanup_errors=True)
    home = Path(folder.name)
    for name in ("root", "work"):
        (home / name).mkdir()
    (home / "main.py").write_text(program, encoding="utf-8")
    if os.getuid() == 0:
        home.chmod(0o711)
        (home / "work").chmod(0o755)
        (home / "main.py").chmod(0o400)  # tests aren't for whom they test
        os.chown(home / "main.py", user, user)
    read, write = os.pipe()
    spec = {
        "python": os.path.realpath(sys._base_executable),  # type: ignore[attr-defined]
        "program": str(home / "main.py"),
        "arguments": list(arguments),
        "root": str(home / "root"),
        "folder": str(home / "work"),
        "readable": _readable(),
        "limits": limits.of_process(),
        "wall_s": limits.wall_s,
        "disk": limits.disk,
        "library": permitted.LIBRARY,
        "calls": {"writing": permitted.rules(True), "reading": permitted.rules(False)},
        "user": user,
        "report": write,
        "parent": os.getpid(),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(SCRIPT), json.dumps(spec)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={},
            cwd=home,
            pass_fds=[write],
            start_new_session=True,
        )
    except BaseException:
        os.close(read)
        folder.cleanup()
        raise
    finally:
        os.close(write)
    return Confined(process, read, folder)


def run(program: str, *, limits: Limits = Limits(), output: int = 2**16, arguments: Sequence[str] = ()) -> Ran:
    """Run a program to its end, or to the end of its time, and keep the first `output` bytes of what it writes."""
    read, write = os.pipe()
    deadline = time.monotonic() + limits.wall_s + GRACE_S
    with contextlib.closing(os.fdopen(read, "rb", buffering=0)):
        try:
            confined = start(program, limits=limits, arguments=arguments, stdout=write, stderr=subprocess.STDOUT)
        finally:
            os.close(write)
        with confined:
            said = b"".join(_chunks(read, deadline, output))
            flooded = len(said) > output
            ended = confined.end() if flooded else confined.wait(max(0.0, deadline - time.monotonic()))
    return Ran(**vars(ended), output=said[:output], flooded=flooded)


@lru_cache(maxsize=1)
def confinement() -> Ended:
    """Try how programs are confined on this machine. Raises UserError where they would be this process's equals."""
    if os.uname().machine not in permitted.MACHINES:
        raise UserError(
            f"programs can't be confined on {os.uname().machine}, only on {' and '.join(permitted.MACHINES)}: run it "
            "elsewhere, or leave --execute out"
        )
    ran = run("print(6 * 7)")
    if not (ran.namespaces or ran.other_user):
        raise UserError(
            "programs can't be confined here: this kernel permits no namespaces to a user who isn't root; run it as root in "
            "a container, or leave --execute out"
        )
    if ran.status != 0 or ran.output != b"42\n":
        raise UserError(
            f"programs can't be run confined here ({ran.failed or ran.output.decode(errors='replace').strip()[-200:]}): run "
            "it elsewhere, or leave --execute out"
        )
    return Ended(**{name: value for name, value in vars(ran).items() if name not in ("output", "flooded")})


def _user() -> int:
    """A user of this process's user namespace that nobody is, another each time. Raises UserError where it has none."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    mapped = [range(int(first), int(first) + int(count)) for first, _, count in map(str.split, lines)]
    for users in USERS:
        if os.getuid() != 0 or any(users[0] in found and users[-1] in found for found in mapped):
            return secrets.choice(users)
    raise UserError("programs can't be confined here: this container has no user but root; leave --execute out")


def _readable() -> list[str]:
    """Paths that a program needs to see: the interpreter and the libraries that it loads."""
    places = [path for path in LIBRARIES if os.path.lexists(path)]
    home = os.path.realpath(sys.base_prefix)
    return [path for path in places if not path.startswith(home + "/")] + [home]


def _chunks(descriptor: int, deadline: float, most: int) -> Iterator[bytes]:
    """Read until the other end is closed, the time is up, or `most` bytes are exceeded."""
    size = 0
    while size <= most and (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return
        found = os.read(descriptor, 2**16)
        if not found:
            return
        size += len(found)
        yield found


def _read(descriptor: int, most: int) -> bytes:
    return b"".join(_chunks(descriptor, time.monotonic() + 1, most))[:most]
