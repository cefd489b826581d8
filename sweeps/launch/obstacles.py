"""Obstacles in a folder of runs, found before anything is trained. Changes nothing."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.errors import UserError
from core.records import designs
from core.records.run_record import ATTEMPTS
from core.training.seals import check_key
from sweeps.launch import running_sweeps
from sweeps.runs.folders import LOCK_FILE, run_folder
from sweeps.storage.submissions import FOLDER_ID
from sweeps.studies.plan import Sweep

FILES = (LOCK_FILE, designs.FILE_NAME, FOLDER_ID)
FOLDERS = (ATTEMPTS, running_sweeps.FOLDER)


def check_places(plan: Sweep, out: Path) -> None:
    """Raise UserError for what should be a folder, or a file, and isn't, and for a key that signs nothing.

    out: of all runs.
    """
    check_key()
    runs = [run_folder(plan, run, out) for run in plan.runs]
    places = dict.fromkeys([out, out / plan.study_name, *(place for run in runs for place in (run.parent, run))])
    for path, reason in _obstacles(places):
        raise UserError(f"{path} {reason}: move it away, or choose another --out")


def _obstacles(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        if not os.path.lexists(folder):
            continue
        if not os.path.isdir(folder):
            yield folder, _no_folder(folder)
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield folder, "may not be written into"
        for file in FILES:
            if os.path.isdir(folder / file):
                yield folder / file, "is a folder where a file should be"
        for inner in FOLDERS:
            if os.path.lexists(folder / inner) and not os.path.isdir(folder / inner):
                yield folder / inner, _no_folder(folder / inner)


def _no_folder(path: Path) -> str:
    return "is a link that leads to no folder" if os.path.islink(path) else "is a file where a folder should be"
