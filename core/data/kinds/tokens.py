"""Corpora of token shards, which another program tokenised."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.data import files
from core.data.corpus import Corpus, Reading, corpus
from core.data.shards import CHUNK, META, Shards, has_index, open_shard, read_index
from core.data.splits import SHARE, Origin, hold_back, roles
from core.data.tokenizers import Vocabulary
from core.errors import UserError
from core.runtime import json_files

SUFFIXES = (".bin", ".npy")
BESIDE = (META, ".idx", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@corpus("tokens", tokenized=True)
def read_shards(argument: str, reading: Reading) -> Corpus:
    """tokens:PATH, a file or folder of shards; see core.data.shards for their formats.

    What files' names say is held out; else about a tenth of all tokens: the last files, and the end of one too large. Raises
    UserError for truncated, mislabelled, empty or unreadable shards, ids beyond a meta.json's vocabulary, and its mask.
    """
    root = files.locate("tokens", argument, "is not a folder or file of token shards")
    paths, passed = files.find(root, SUFFIXES, BESIDE)
    if not paths or paths[0].suffix.lower() not in SUFFIXES:
        raise UserError(f"data.corpus=tokens:{argument} has no .bin or .npy file")
    home = root.parent if root.is_file() else root
    by_name = {path.relative_to(home).as_posix(): path for path in paths}
    chosen = roles(f"tokens:{argument}", list(by_name))
    meta = _meta(home)
    _check_folders(home, paths)
    arrays = {name: open_shard(by_name[name], meta.get("dtype")) for name in (*chosen.train, *chosen.held)}
    starts = _starts(arrays, by_name, chosen.held, reading.held_out_share, meta.get("eos_id"))
    train = [array[: starts[name]] for name, array in arrays.items() if starts[name]]
    held = [array[starts[name] :] for name, array in arrays.items() if starts[name] < len(array)]
    digests, largest = hashlib.sha256(str(len(train)).encode()), 0
    for name, array in arrays.items():
        digest, top = _scanned(by_name[name], array, meta)
        digests.update(digest)
        largest = max(largest, top)
        # A lone file's last tenth goes without saying.
        if 0 < starts[name] < len(array) and (len(arrays) > 1 or starts[name] != int(len(array) * (1 - SHARE))):
            digests.update(f"cut {starts[name]}".encode())
    ids = (meta.get(f"{name}_id") for name in ("mask", "eos", "pad"))
    vocabulary = Vocabulary(meta.get("vocab_size", largest + 1), *ids)
    tails = [name if not starts[name] else f"{name} (tail)" for name in arrays if starts[name] < len(arrays[name])]
    origin = Origin(list(arrays), tails, passed + chosen.passed, named=bool(chosen.held))
    return Corpus(
        Shards(train),
        Shards(held),
        f"tokens:{digests.hexdigest()[:16]}",
        vocabulary,
        bytes_per_token=meta.get("bytes_per_token"),
        origin=origin,
    )


def _check_folders(home: Path, paths: Sequence[Path]) -> None:
    for folder in {path.parent for path in paths} - {home}:
        if (folder / META).exists():
            raise UserError(f"{folder} has a {META} of its own: name it as a corpus, data.corpus=tokens:{folder}")


def _starts(
    arrays: Mapping[str, np.ndarray],
    paths: Mapping[str, Path],
    named: Sequence[str],
    share: float | None,
    eos: int | None,
) -> dict[str, int]:
    """Start of the held-out part of each shard: at 0 where it is held out whole, at its length where it isn't at all."""
    if named:
        return {name: 0 if name in named else len(array) for name, array in arrays.items()}
    back = hold_back({name: len(arrays[name]) for name in reversed(list(arrays))}, share)
    starts = {name: len(array) - back.get(name, 0) for name, array in arrays.items()}
    return {name: _seam(paths[name], arrays[name], start, eos) for name, start in starts.items()}


def _seam(path: Path, array: np.ndarray, at: int, eos: int | None) -> int:
    """Find a cut of a shard near a token: behind a sequence that its index or an end token closes, where one is close."""
    if at in (0, len(array)):
        return at
    least = at - (len(array) - at) // 2
    if has_index(path):
        ends = np.cumsum(read_index(path)[1])
        ends = ends[(ends > least) & (ends <= at)]
    else:
        ends = np.zeros(0, dtype=np.int64) if eos is None else least + 1 + np.flatnonzero(array[least:at] == eos)
    return int(ends[-1]) if len(ends) else at


def _scanned(path: Path, array: np.ndarray, meta: Mapping[str, Any]) -> tuple[bytes, int]:
    """sha256 and largest id of a shard. Raises UserError for ids that its meta.json rules out."""
    stat, mask = path.stat(), meta.get("mask_id")
    digest, top, masked = _scan(path, stat.st_size, stat.st_mtime_ns, str(array.dtype), array.offset, mask)  # type: ignore[attr-defined]
    if "vocab_size" in meta and top >= meta["vocab_size"]:
        raise UserError(f"{path} has the token id {top}, beyond vocab_size={meta['vocab_size']} of its {META}")
    if masked is not None:
        raise UserError(
            f"{path} has the mask, id {mask} by its {META}, among its tokens (token {masked}), and a mask can't be learned: "
            "write the shards again, such as by ablate data tokenize, which reads special tokens' names in text as text"
        )
    return digest, top


@lru_cache(maxsize=4096)
def _scan(
    path: Path, size: int, modified_ns: int, dtype: str, offset: int, mask: int | None
) -> tuple[bytes, int, int | None]:
    """sha256 and largest id of a shard, and where the mask first is; size and time of change are in the cache's key."""
    digest, largest, masked = hashlib.sha256(), 0, None
    array = np.memmap(path, dtype=dtype, mode="r", offset=offset)
    for start in range(0, len(array), CHUNK):
        chunk = np.asarray(array[start : start + CHUNK])
        if int(chunk.min()) < 0:
            raise UserError(f"{path} has negative token ids: it is of another type than {dtype}")
        digest.update(chunk.tobytes())
        largest = max(largest, int(chunk.max()))
        if masked is None and mask is not None and (found := np.flatnonzero(chunk == mask)).size:
            masked = start + int(found[0])
    return digest.digest(), largest, masked


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json_files.read(path)
    except FileNotFoundError:
        return {}
    except json_files.DamagedFileError as error:
        raise UserError(f"can't read {path}: {error}") from None
    numbers = ("vocab_size", "mask_id", "eos_id", "pad_id")
    if not isinstance(meta, dict) or not all(
        meta.get(n) is None or (json_files.is_whole(meta[n]) and meta[n] >= 0) for n in numbers
    ):
        raise UserError(f"{path} must hold whole numbers from 0 on under {', '.join(numbers)}")
    if meta.get("bytes_per_token") is not None and not (
        json_files.fits(meta["bytes_per_token"], json_files.Number) and meta["bytes_per_token"] > 0
    ):
        raise UserError(f"{path}: bytes_per_token must be a number above 0, not {meta['bytes_per_token']}")
    if meta.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise UserError(f"{path}: dtype must be uint16 or uint32, not {meta['dtype']}")
    meta = {key: value for key, value in meta.items() if value is not None}
    if meta.get("vocab_size") == 0:
        raise UserError(f"{path}: vocab_size must be at least 1, not 0")
    for name in numbers[1:]:
        if meta.get(name, 0) >= meta.get("vocab_size", json_files.LARGEST):
            raise UserError(f"{path}: {name}={meta[name]} is beyond vocab_size={meta['vocab_size']}")
    return meta
