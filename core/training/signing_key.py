"""The key that checkpoints are signed with: the user's own, and never in a folder that is handed on.

It lies in $ABLATE_KEY_FILE, else in $XDG_CONFIG_HOME/ablate/checkpoints.key, else in ~/.config/ablate/checkpoints.key,
readable by the user alone. Whoever needs it first makes it; the home directory takes it to every node that shares that.
"""

import errno
import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from core.errors import UserError
from core.runtime.paths import expanded, sync_folder

VARIABLE = "ABLATE_KEY_FILE"
BYTES = 32
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
# Of a file server that doesn't answer, or wants a ticket that has run out.
AWAY = (
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED,
)  # fmt: skip
_known: dict[Path, bytes] = {}  # read once: a home that is away for a while during a training stops no checkpoint


class KeyAwayError(OSError):
    """The key is there and can't be read at the moment: nothing is known of what it signed."""


def key_file() -> Path:
    """Path of the key, existing or not. Raises OSError where there is no home directory."""
    if VARIABLE in os.environ:
        return Path(expanded(os.environ[VARIABLE]))
    try:
        config = os.path.expanduser(os.environ.get("XDG_CONFIG_HOME", "")) or Path.home() / ".config"
    except RuntimeError:
        raise OSError(errno.ENOENT, "there is no home directory") from None
    return Path(config) / "ablate" / "checkpoints.key"


def own_key() -> bytes:
    """The user's key, made if there is none.

    Raises UserError for one that others can read or that is none, KeyAwayError where it is out of reach, and another OSError
    where it can't be made.
    """
    path = key_file()
    if path not in _known:
        try:
            _known[path] = _read(path)
        except FileNotFoundError:
            _make(path)
            _known[path] = _read(path)
    return _known[path]


def check_key() -> None:
    """Raise UserError for a key that can't be used, before a training needs it; one that can't be had is said by the run."""
    try:
        own_key()
    except OSError:
        return


def name_of(key: bytes) -> str:
    """Fingerprint of a key for seals; it reveals nothing of the key."""
    return hashlib.sha256(b"name of the key\0" + key).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            content = file.read(4096)
    except OSError as error:
        if error.errno not in AWAY:
            raise
        raise KeyAwayError(error.errno, error.strerror, str(path)) from None
    if stat.S_IMODE(about.st_mode) & 0o077 or about.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{path}, the key that checkpoints are signed with, is not this user's alone: chmod 600, delete it, or "
            f"name another file in {VARIABLE}"
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
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process was first
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _copy(Path(temporary).read_bytes(), path)
        sync_folder(path.parent)  # what it signs isn't to outlive it
    finally:
        os.unlink(temporary)


def _copy(content: bytes, path: Path) -> None:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
