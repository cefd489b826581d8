"""Signed hashes of a checkpoint's files, checked before any of them is opened.

step-N/seal.json    {"said": {..., "files": {path: [bytes, digest]}}, "key": which key, "mac": HMAC-SHA256 of "said"}

A digest is the SHA-256 of the SHA-256 of each piece of PIECE bytes: pieces are hashed on all cores at once.

The key is the user's own, and never in a folder that is handed on: $ABLATE_KEY_FILE, else
$XDG_CONFIG_HOME/ablate/checkpoints.key, else ~/.config/ablate/checkpoints.key, readable by the user alone. Whoever needs it
first makes it; the home directory takes it to every node that shares that.
"""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records import run_record
from core.runtime.paths import expanded, sync_folder
from core.runtime.retry import Patience

SEAL = "seal.json"
PIECE = 1 << 24
Digest = tuple[int, str]  # bytes, and the digest in hex
KEY_VARIABLE = "ABLATE_KEY_FILE"
KEY_BYTES = 32
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
# Of a file server that doesn't answer, or wants a ticket that has run out.
AWAY = (
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED,
)  # fmt: skip
_known: dict[Path, bytes] = {}  # read once: a home that is away for a while during a training stops no checkpoint


class SealError(ValueError):
    """A checkpoint isn't one that can be gone on from; the message says why."""


def digest(path: Path, *, sync: bool = False) -> Digest:
    """A file's size and digest. sync: returns once it is on the disk, to which it goes while it is hashed."""
    with path.open("rb") as file, ThreadPoolExecutor(max_workers=1 + _cores()) as pool:
        number = file.fileno()
        synced = pool.submit(os.fsync, number) if sync else None
        size = os.fstat(number).st_size
        pieces = pool.map(lambda start: _hash_piece(number, start), range(0, size, PIECE))
        whole = hashlib.sha256(b"".join(pieces)).hexdigest()
        if synced is not None:
            synced.result()
    return size, whole


def _hash_piece(number: int, start: int) -> bytes:
    found, end = hashlib.sha256(), start + PIECE
    while start < end and (part := os.pread(number, min(1 << 20, end - start), start)):
        found.update(part)
        start += len(part)
    return found.digest()


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextlib.contextmanager
def hashing(engine: Any, folder: Path) -> Iterator[dict[str, Digest]]:
    """Inside, each file that `engine.save(state, path)` has written is hashed and synced beside what is done next.

    Gives the digests by path in the folder, complete once it is left: other ranks may write their files meanwhile.
    """
    save: Callable[..., Any] = engine.save
    futures: dict[str, Future[Digest]] = {}
    digests: dict[str, Digest] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:

        def save_and_hash(state_dict: Any, path: Any) -> Any:
            done = save(state_dict, path)
            futures[Path(path).relative_to(folder).as_posix()] = pool.submit(digest, Path(path), sync=True)
            return done

        engine.save = save_and_hash
        try:
            yield digests
        finally:
            engine.save = save
        digests |= {name: future.result() for name, future in futures.items()}


def seal(folder: Path, said: Mapping[str, Any], digests: Mapping[str, Digest]) -> None:
    """Sign a checkpoint, once all of its files are written: it is whole from then on.

    said: what else is signed; digests: of files that are on the disk already, by path in the folder. Others are hashed here.
    """
    files = {name: digests.get(name) or digest(folder / name, sync=True) for name in sorted(_files(folder))}
    for place in {path.parent for name in files for path in (folder / name, folder)}:
        sync_folder(place)
    content, key = {**said, "files": files}, own_key()
    whole = {"said": content, "key": key_name(key), "mac": _mac(key, content)}
    run_record.write_atomically(folder / SEAL, json.dumps(whole) + "\n")
    sync_folder(folder.parent)


def read_seal(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's signed seal, with its "files".

    Raises SealError where nothing was, it was changed since, or another key signed it.
    """
    if folder.is_symlink() or not folder.is_dir() or not (folder / SEAL).is_file():
        raise SealError("it has no seal: an older version saved it, or another program")
    try:
        whole = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        said, signed_by, mac = whole["said"], str(whole["key"]), str(whole["mac"])
        files = {str(name): (int(size), str(content)) for name, (size, content) in said["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SealError("its seal can't be read") from None
    try:
        # A key that is out of reach is waited for: what it signed isn't to be set aside for that.
        key = Patience.of_environment().call(lambda again: own_key(), _away)
    except OSError as error:
        raise SealError(f"there is no key that it could be signed with ({error.strerror})") from None
    if signed_by != key_name(key):
        raise SealError(f"it is signed with another key than {key_file()}")
    if not hmac.compare_digest(mac.encode(errors="replace"), _mac(key, said).encode()):
        raise SealError("its seal was changed")
    return {**said, "files": files}


def _away(error: Exception) -> str | None:
    return f"{error.filename}: {error.strerror}" if isinstance(error, KeyAwayError) else None


def damage(folder: Path, files: Mapping[str, Digest], share: tuple[int, int] = (0, 1)) -> str | None:
    """Describe damage to the files of a checkpoint; None if they are as signed.

    share: (k, n) reads every n-th file only, from the k-th, biggest first: n processes that each take a share read all.
    """
    try:
        found = _files(folder)
        if missing := sorted(files.keys() - found):
            return f"{missing[0]} is missing"
        if more := sorted(found - files.keys()):
            return f"{more[0]!r} was added to it"
        for name, (size, _) in files.items():
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size} bytes, not {size}"
        for name in sorted(files, key=lambda name: (-files[name][0], name))[share[0] :: share[1]]:
            if digest(folder / name) != files[name]:
                return f"{name} is not what was saved"
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    except SealError as error:
        return str(error)
    return None


def _files(folder: Path) -> set[str]:
    """The files of a checkpoint but its seal. Raises SealError for a link or anything else that is no file or folder."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise SealError(f"{path.relative_to(folder).as_posix()!r} is no file")
        if path.is_file():
            found.add(path.relative_to(folder).as_posix())
    return found - {SEAL}


def _mac(key: bytes, said: Any) -> str:
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()


class KeyAwayError(OSError):
    """The key is there and can't be read at the moment: nothing is known of what it signed."""


def key_file() -> Path:
    """Path of the key, existing or not. Raises OSError where there is no home directory."""
    if KEY_VARIABLE in os.environ:
        return Path(expanded(os.environ[KEY_VARIABLE]))
    try:
        config = os.path.expanduser(os.environ.get("XDG_CONFIG_HOME", "")) or Path.home() / ".config"
    except RuntimeError:
        raise OSError(errno.ENOENT, "there is no home directory") from None
    return Path(config) / "ablate" / "checkpoints.key"


def own_key() -> bytes:
    """The user's key, made if there is none.

    Raises UserError for one that is none or that others can read, KeyAwayError out of reach, OSError where none can be made.
    """
    path = key_file()
    if path not in _known:
        try:
            _known[path] = _read_key(path)
        except FileNotFoundError:
            _make_key(path)
            _known[path] = _read_key(path)
    return _known[path]


def check_key() -> None:
    """Raise UserError for a key that can't be used, before a training needs it; one that can't be had is said by the run."""
    with contextlib.suppress(OSError):
        own_key()


def key_name(key: bytes) -> str:
    """Fingerprint of a key for seals; it reveals nothing of the key."""
    return hashlib.sha256(b"name of the key\0" + key).hexdigest()[:16]


def _read_key(path: Path) -> bytes:
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
            f"name another file in {KEY_VARIABLE}"
        )
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(
            f"{path} holds no key: delete it, and another is made (runs whose checkpoints were signed with it start again)"
        )
    return key


def _make_key(path: Path) -> None:
    """Make a key so that of several processes, on several nodes, one's key is everybody's."""
    content = f"{secrets.token_hex(KEY_BYTES)}\n".encode()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable by the user alone
    try:
        _write_synced(handle, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process was first
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with contextlib.suppress(FileExistsError):
                _write_synced(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), content)
        sync_folder(path.parent)  # what it signs isn't to outlive it
    finally:
        os.unlink(temporary)


def _write_synced(handle: int, content: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
