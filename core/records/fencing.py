"""Fencing of a run: checks that it is still this process's before anything is written into its folder.

A lock can be lost unnoticed: a file server's lease runs out while its owner sleeps. So whoever takes a run writes a token of
its own into the folder, CLAIM_FILE, and a file comes into the folder in three steps: it is written under another name, which
ends in ".partial"; the token is read; the file is renamed. Whoever takes the run over writes its token first and removes all
that is partial second. A former owner's rename thus comes before that, or finds its file gone, however long it slept between
two steps. Checkpoints are written in place, by libraries; their seal says whether they are whole, and what deletes or moves
one asks first.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runtime import json_files
from core.runtime.child_process import exported

CLAIM_FILE = ".claim"
PARTIAL = ".partial"
VARIABLE = "ABLATE_CLAIM"  # of a worker and its children: the token, a space and the run's folder
TRIES, PAUSE_S = 10, 0.3  # of reading the token
FOREIGN = ("wandb", "attempts")  # folders in a run's that are written by no such steps


class FencedOffError(SystemExit):
    """Another process has taken the run over, or recorded it. Not an Exception: it is no failure of the run."""


@dataclass(frozen=True)
class Hold:
    """A run that was taken: it is held until another process takes it."""

    folder: Path
    token: str

    def is_valid(self) -> bool:
        """True if nobody has taken the run since."""
        return bool(_read(self.folder).get("token") == self.token)

    def check(self) -> None:
        """Raise FencedOffError where another has taken the run."""
        now = _read(self.folder)
        if now.get("token") != self.token:
            who = f"process {now['pid']} of {now['host']}" if "pid" in now else "somebody"
            raise FencedOffError(f"{self.folder}: {who} took this run over while this process slept")

    def heeded(self) -> contextlib.AbstractContextManager[None]:
        """Inside, this process and its children write into the folder only while the run is held."""
        return exported(VARIABLE, f"{self.token} {os.path.abspath(self.folder)}")


def take(folder: Path) -> Hold:
    """Take a run, from whoever held it. Needs its lock.

    CLAIM_FILE then holds {"number", "token", "host", "pid"}: the how-manieth take of the run it is, and whose.
    """
    token = uuid.uuid4().hex
    former = _read(folder).get("number")
    number = 1 + (former if isinstance(former, int) else 0)
    content = {"number": number, "token": token, "host": socket.gethostname(), "pid": os.getpid()}
    while True:
        partial = partial_of(folder / CLAIM_FILE)
        try:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(partial, folder / CLAIM_FILE)
            break
        except FileNotFoundError:
            if not folder.is_dir():
                raise  # else another process that takes the run has swept it away: the last one has it
        finally:
            partial.unlink(missing_ok=True)
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in FOREIGN]
        for name in names:
            if name.endswith(PARTIAL):
                Path(place, name).unlink(missing_ok=True)
    return Hold(folder, token)


def check(path: Path) -> None:
    """Raise FencedOffError for a path in the folder of the run that this process works on, once another has taken it."""
    token, _, folder = os.environ.get(VARIABLE, "").partition(" ")
    if folder and Path(os.path.abspath(path)).is_relative_to(folder):
        Hold(Path(folder), token).check()


def partial_of(path: Path) -> Path:
    """A new name beside a file, under which it is to be written."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")


def move_in(partial: Path, path: Path) -> None:
    """Rename a file that is whole into its place, over what lies there, unless another process has the run."""
    check(path)
    with gone_if_taken(path):
        os.replace(partial, path)


def link_in(partial: Path, path: Path) -> bool:
    """Give a file that is whole its name unless there is a file of that name: of several at once, one is told True."""
    check(path)
    with gone_if_taken(path):
        try:
            os.link(partial, path)
        except FileExistsError:
            return partial.stat().st_nlink > 1 and partial.samefile(path)  # NFS may have done it, and asked again
    return True


def take_away(path: Path, target: Path) -> None:
    """Rename a file out of its place; what turns out to be another process's is put back, and FencedOffError raised."""
    check(path)
    os.replace(path, target)
    try:
        check(path)
    except FencedOffError:
        _put_back(target, path)
        raise


def _put_back(target: Path, path: Path) -> None:
    try:
        os.link(target, path)
    except FileExistsError:
        pass  # it has been written anew
    except OSError:  # a file system without links
        if not os.path.lexists(path):
            os.replace(target, path)
            return
    target.unlink()


def remove(path: Path) -> None:
    """Delete a file, if there is one, unless it is another process's: FencedOffError is raised then."""
    partial = partial_of(path)
    with contextlib.suppress(FileNotFoundError):
        take_away(path, partial)
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def gone_if_taken(path: Path) -> Iterator[None]:
    """Inside, a partial file that is gone means FencedOffError where another process has the run."""
    try:
        yield
    except FileNotFoundError:
        check(path)
        raise


def _read(folder: Path, tries: int = TRIES) -> dict[str, Any]:
    try:
        content = json_files.parse((folder / CLAIM_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, json_files.DamagedFileError):
        return {}
    except OSError:  # a file server that is away for a moment has taken nothing over
        if tries == 1:
            raise
        time.sleep(PAUSE_S)
        return _read(folder, tries - 1)
    return content if isinstance(content, dict) else {}
