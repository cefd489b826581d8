"""The journal: a file of JSON lines that many processes append to.

A file that is no journal is left as it is. A line that can't be read is named with its number: records are the truth, so a
damaged journal is moved away and a new one takes them in.
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
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

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
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _damaged(path, " can't be read") from None


def is_file(name: str, path: Path, example: str = "") -> bool:
    """True if a storage's file is there. Raises UserError for a link that leads nowhere and what is no file."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{name} is a link to {path.readlink()}, which isn't there")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder; name a file{example}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} is a pipe or a device; name a file")
    return True


def check_file(path: Path) -> None:
    """Raise UserError where a path is there and no journal."""
    name = f"storage journal:{path}"
    if not is_file(name, path, f" in it, such as journal:{path / 'journal.log'}"):
        return
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
        return _is_entry(first)
    return not first or (len(first) < MOST_FIRST_BYTES and (first.startswith(START) or START.startswith(first)))


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:  # of its encoding too
        return False
    return isinstance(entry, dict) and isinstance(entry.get("op_code"), int) and "worker_id" in entry


def _damaged(path: Path, what: str) -> DamagedJournalError:
    advice = f"stop the sweep, move the file away (mv {path} {path}.damaged) and start again: {ADOPTED}"
    return DamagedJournalError(f"storage journal:{path}{what}; {advice}")


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
            raise _damaged_line(self._path) or _damaged(self._path, " can't be read") from None


def _damaged_line(path: Path) -> DamagedJournalError | None:
    """Error that names the first line that ends but is no entry."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not _is_entry(line):
                what = "only bytes of NUL" if not line.strip(b"\0\n") else "no entry"
                return _damaged(path, f": line {number} is damaged ({what})")
    return None


def _check_last_line(path: Path, lock: "JournalLock") -> None:
    """Raise DamagedJournalError where the last line ends but is no entry: whatever came after it couldn't be read."""
    if _last_line_is_whole(path):
        return
    with get_lock_file(lock):  # perhaps somebody was writing it
        if not _last_line_is_whole(path) and (damage := _damaged_line(path)) is not None:
            raise damage


def _last_line_is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size, step, tail = file.seek(0, os.SEEK_END), 1 << 16, b""
        while len(tail) < size and tail.count(b"\n") < 2:
            step = min(2 * step, size)
            file.seek(size - step)
            tail = file.read(step)
    complete = tail[: tail.rfind(b"\n") + 1]
    return not complete or _is_entry(complete[complete.rfind(b"\n", 0, -1) + 1 :])


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
