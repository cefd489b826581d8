"""The journal: a file of JSON lines that many processes append to.

Nothing is written to, or cut off, a file that isn't one. A line that can't be read is named with its number: records
are the truth, so a damaged journal is moved away and a new one takes them in.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from core.errors import UserError
from sweeps.storage.outages import ADOPTED

START = b'{"op_code":'  # as Optuna writes every line
SQLITE_MAGIC = b"SQLite format 3\0"
MOST_FIRST_BYTES = 1 << 20  # a longer first line is nobody's journal


class DamagedJournalError(UserError):
    """A line of the journal can't be read."""


def open_journal(path: Path) -> JournalStorage:
    """A journal, made where there is none. Raises UserError, and leaves the file as it is, where it holds anything else."""
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # by whatever link it was named: all lock the same file
    journal = Journal(path)
    _check_last_line(path, journal.lock)
    try:
        return JournalStorage(journal)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(path) from None


def check_file(path: Path) -> None:
    """Raise UserError where a path is there and no journal."""
    name = f"storage journal:{path}"
    if path.is_symlink() and not path.exists():
        raise UserError(f"{name} is a link to {path.readlink()}, which isn't there")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder; name a file in it, such as journal:{path / 'journal.log'}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} is a pipe or a device; name a file")
    with path.open("rb") as file:
        first = file.read(len(SQLITE_MAGIC))
        if first == SQLITE_MAGIC:
            raise UserError(f"{name} is an SQLite database; write sqlite:///{path}")
        if not is_journal(file):
            raise UserError(f"{name} is not an Optuna journal; name another file, or move this one away")


def is_journal(file: BinaryIO) -> bool:
    """True if it is empty, or its first line is an entry, or the beginning of one that a crash cut off."""
    file.seek(0)
    first = file.readline(MOST_FIRST_BYTES)
    if first.endswith(b"\n"):
        return _entry(first) is not None
    return not first or (len(first) < MOST_FIRST_BYTES and (first.startswith(START) or START.startswith(first)))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # of its encoding too
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("op_code"), int) and "worker_id" in entry
    return entry if whole else None


def _advice(path: Path) -> str:
    return f"stop the sweep, move the file away (mv {path} {path}.damaged) and start again: {ADOPTED}"


def _damaged(path: Path, number: int, line: bytes) -> DamagedJournalError:
    what = "only bytes of NUL" if not line.strip(b"\0\n") else "no entry"
    return DamagedJournalError(f"storage journal:{path}: line {number} is damaged ({what}); {_advice(path)}")


class Journal(JournalFileBackend):
    """Optuna's journal file, which names a line that can't be read."""

    def __init__(self, path: Path) -> None:
        self._path, self.lock = path, JournalLock(path)
        super().__init__(str(path), lock_obj=self.lock)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """As Optuna's. Raises DamagedJournalError."""
        try:
            for entry in super().read_logs(log_number_from):
                if not isinstance(entry, dict) or "op_code" not in entry:
                    raise ValueError(entry)
                yield entry
        except ValueError:
            raise _found(self._path) or _unreadable(self._path) from None


def _unreadable(path: Path) -> DamagedJournalError:
    return DamagedJournalError(f"storage journal:{path} can't be read; {_advice(path)}")


def _found(path: Path) -> DamagedJournalError | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and _entry(line) is None:
                return _damaged(path, number, line)
    return None


def _check_last_line(path: Path, lock: "JournalLock") -> None:
    """Raise DamagedJournalError where the last line ends but is no entry: whatever came after it couldn't be read."""
    if _last_line_is_whole(path):
        return
    with lock:  # perhaps somebody was writing it
        if not _last_line_is_whole(path) and (damage := _found(path)) is not None:
            raise damage


def _last_line_is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size, step, tail = file.seek(0, os.SEEK_END), 1 << 16, b""
        while len(tail) < size and tail.count(b"\n") < 2:
            step = min(2 * step, size)
            file.seek(size - step)
            tail = file.read(step)
    complete = tail[: tail.rfind(b"\n") + 1]
    return not complete or _entry(complete[complete.rfind(b"\n", 0, -1) + 1 :]) is not None


class JournalLock(BaseJournalFileLock):
    """An exclusive lock on a journal that ends with the process that holds it.

    Optuna's own lock file outlives a killed process and stalls the others for 30 s. A last line that a full disk or a
    power cut left unfinished is cut off before the next one is appended: nobody has been told of it.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._lock_file = journal, journal.with_name(f"{journal.name}.flock")
        self._handle = -1

    def acquire(self) -> bool:
        self._handle = os.open(self._lock_file, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._cut_unfinished_line()
        except BaseException:  # Ctrl-C too: a lock that is kept by mistake stops every worker
            os.close(self._handle)
            raise
        return True

    def release(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()

    def _cut_unfinished_line(self) -> None:
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return
            file.seek(size - 1)
            if file.read(1) != b"\n":
                if not is_journal(file):  # somebody put another file in its place
                    raise UserError(f"storage journal:{self._journal} is not an Optuna journal any more")
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
