"""What would be in a sweep's way in a folder of runs, said before anything is trained. Nothing is changed."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.errors import UserError
from core.keys import check_key
from core.records import ATTEMPTS
from sweeps.folders import LOCK_FILE
from sweeps.study import FOLDER_ID


def check_places(out: Path, study: Path, runs: Iterable[Path]) -> None:
    """Raise UserError for what should be a folder, or a file, and isn't, and for a key that signs nothing.

    out: of all runs; runs: folders of runs.
    """
    check_key()
    places = dict.fromkeys([out, study, *(place for run in runs for place in (run.parent, run))])
    for path, reason in _obstacles(out, places):
        raise UserError(f"{path} {reason}: move it away, or choose another --out")


def _obstacles(out: Path, folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    if os.path.isdir(out / FOLDER_ID):
        yield out / FOLDER_ID, "is a folder where a file should be"
    for folder in folders:
        if not os.path.lexists(folder):
            continue
        if not os.path.isdir(folder):
            is_link = os.path.islink(folder)
            yield folder, "is a link that leads to no folder" if is_link else "is a file where a folder should be"
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield folder, "may not be written into"
        if os.path.isdir(folder / LOCK_FILE):
            yield folder / LOCK_FILE, "is a folder where a file should be"
        if os.path.lexists(folder / ATTEMPTS) and not os.path.isdir(folder / ATTEMPTS):
            yield folder / ATTEMPTS, "is a file where a folder should be"
