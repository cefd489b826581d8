"""Identity of a study's folder, storage and jobs, and the folders of its submissions. Imports no torch."""

import hashlib
import os
import re
import uuid
from pathlib import Path

from core.errors import UserError
from core.records import run_record

FOLDER_ID = ".id"
SUBMISSIONS, RAY, STORAGE_FILE, JOB = "slurm", "ray", "storage", "job.json"
UNNAMED = "xxxxxxxx"  # where the first submission will put what is of its folder of runs


def folder_id(out: Path) -> str:
    """Identity of a folder of runs, which moves with it."""
    path = out / FOLDER_ID
    if not path.exists():
        run_record.write_atomically(path, uuid.uuid4().hex + "\n")
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is to tell this folder of runs from others; delete it") from None


def job_name(study: str, out: Path, *, dry_run: bool = False) -> str:
    """Name of a study's Slurm jobs, by which they are found again.

    dry_run: nothing is written, and a folder of runs that has no id yet is given none.
    """
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", study)
    if dry_run and not (out / FOLDER_ID).exists():
        return f"ablate-{words}-{UNNAMED}"
    return f"ablate-{words}-{hashlib.sha256(f'{folder_id(out)}{study}'.encode()).hexdigest()[:8]}"


def submissions(study: Path, kind: str = SUBMISSIONS) -> list[Path]:
    """The folders of a study's submissions to Slurm (or to Ray), oldest first."""
    parent = study / kind
    numbers = [int(path.name) for path in parent.iterdir() if path.name.isdigit()] if parent.is_dir() else []
    return [parent / str(number) for number in sorted(numbers)]


def next_number(study: Path, kind: str = SUBMISSIONS) -> str:
    """Name of the folder that the next submission takes."""
    return str(1 + max((int(folder.name) for folder in submissions(study, kind)), default=0))


def new_folder(study: Path, kind: str = SUBMISSIONS) -> Path:
    """Make the folder of a submission."""
    (study / kind).mkdir(parents=True, exist_ok=True)
    while True:
        folder = study / kind / next_number(study, kind)
        try:
            folder.mkdir()
        except FileExistsError:  # another submission was as quick
            continue
        return folder


def write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner can read."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def storage_of(study: Path) -> str | None:
    """The ledger's URL in a study's newest submission; None where there is none, or it isn't this user's."""
    newest: tuple[float, str] | None = None
    for kind in (SUBMISSIONS, RAY):
        for folder in reversed(submissions(study, kind)):
            path = folder / STORAGE_FILE
            try:
                found = path.stat().st_mtime, path.read_text(encoding="utf-8").strip()
            except (FileNotFoundError, PermissionError):
                continue
            newest = found if newest is None else max(newest, found)
            break
    return None if newest is None else newest[1]
