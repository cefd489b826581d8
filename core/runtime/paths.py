"""Paths as people write them, folders whose names are to be on the disk, and digests of files."""

import hashlib
import os
from pathlib import Path

from core.errors import UserError


def expanded(text: str) -> str:
    """The text with a home folder for `~` or `~name` at its start.

    Raises UserError for a name without one, unless a file or folder is called so: it would be made under that very name.
    """
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        raise UserError(
            f"{text}: '{Path(path).parts[0]}' is nobody's home folder (./{text} is a name that starts with ~)"
        )
    return path


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk: a file's own fsync doesn't promise that of its name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
