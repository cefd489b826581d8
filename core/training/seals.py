"""Signed hashes of a checkpoint's files, checked before any of them is opened.

step-N/seal.json    {"said": {..., "files": {path: [bytes, digest]}}, "key": which key, "mac": HMAC-SHA256 of "said"}

A digest is the SHA-256 of the SHA-256 of each piece of PIECE bytes: pieces are hashed on all cores at once.
"""

import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.records import run_record
from core.runtime.paths import sync_folder
from core.runtime.retry import Patience
from core.training.signing_key import KeyAwayError, key_file, name_of, own_key

SEAL = "seal.json"
PIECE = 1 << 24
Digest = tuple[int, str]  # bytes, and the digest in hex


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
    whole = {"said": content, "key": name_of(key), "mac": _mac(key, content)}
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
    if signed_by != name_of(key):
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
