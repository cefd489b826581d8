"""Identity of a study's folder, storage and jobs. Imports no torch."""

import hashlib
import re
import uuid
from pathlib import Path

from core.errors import UserError
from core.records import run_record

FOLDER_ID = ".id"
SUBMISSIONS, STORAGE_FILE = "slurm", "storage"
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


def submissions(study: Path) -> list[Path]:
    """The folders of a study's Slurm submissions, oldest first."""
    parent = study / SUBMISSIONS
    numbers = [int(path.name) for path in parent.iterdir() if path.name.isdigit()] if parent.is_dir() else []
    return [parent / str(number) for number in sorted(numbers)]


def storage_of(study: Path) -> str | None:
    """The ledger's URL in a study's newest submission; None where there is none, or it isn't this user's."""
    for folder in reversed(submissions(study)):
        try:
            return (folder / STORAGE_FILE).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, PermissionError):
            continue
    return None
