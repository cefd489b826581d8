"""The key that checkpoints are signed with: the user's own, and never in a folder that is handed on.

It lies in $ABLATE_KEY_FILE, else in $XDG_CONFIG_HOME/ablate/checkpoints.key, else in ~/.config/ablate/checkpoints.key,
readable by the user alone. Whoever needs it first makes it; the home directory takes it to every node that shares that.
"""

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from core.errors import UserError

VARIABLE = "ABLATE_KEY_FILE"
BYTES = 32


def key_file() -> Path:
    """Where the key lies, or will. Raises UserError where there is no home directory."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    try:
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError:
        raise UserError(f"there is no home directory to keep a key in: name a file in {VARIABLE}") from None
    return Path(config) / "ablate" / "checkpoints.key"


def own_key() -> bytes:
    """The user's key, made if there is none.

    Raises UserError for one that others can read or that is none, OSError where it can neither be read nor made.
    """
    path = key_file()
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def name_of(key: bytes) -> str:
    """What a seal says of the key that signed it, which tells nothing of the key."""
    return hashlib.sha256(b"name of the key\0" + key).hexdigest()[:16]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        content = file.read(4096)
    if stat.S_IMODE(about.st_mode) & 0o077 or about.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{path}, the key that checkpoints are signed with, is not this user's alone: chmod 600, or delete it"
        )
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != BYTES:
        raise UserError(
            f"{path} holds no key: delete it, and another is made (runs whose checkpoints were signed with it start again)"
        )
    return key


def _make(path: Path) -> None:
    """Make a key so that of several processes, on several nodes, one's key is everybody's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable by the user alone
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was first
    finally:
        os.unlink(temporary)
