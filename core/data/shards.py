"""Token shards on disk, memory-mapped, in the layouts that others write.

nanoGPT: headerless uint16 (.bin). llm.c: 256 int32 of header, then uint16 or uint32 (.bin). Megatron: .bin beside .idx.
OLMo: headerless uint16 or uint32 despite its name (.npy). NumPy's own .npy is read too.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.data import files
from core.data.splits import SHARE, Origin, hold_back, roles
from core.data.tokenizers import Vocabulary
from core.errors import UserError
from core.runtime import json_files

META = "meta.json"
LLMC = {20240520: (1, np.uint16), 20240801: (7, np.uint32)}  # magic: (version, dtype)
MEGATRON_DTYPES = {1: np.uint8, 4: np.int32, 5: np.int64, 8: np.uint16}
CHUNK = 2**24
SUFFIXES = (".bin", ".npy")
BESIDE = (META, ".idx", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Shards:
    """Several mapped arrays as one long one: it has a length, and slices of it are read across the seams."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        assert step == 1
        pieces = []
        for part, end in zip(self.parts, self.ends, strict=True):
            begin = end - len(part)
            if begin < stop and start < end:
                pieces.append(part[max(0, start - begin) : stop - begin])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0, np.uint16)


class Loaded(NamedTuple):
    """Training part, validation part, vocabulary, fingerprint, and bytes per held-out token (None: not known)."""

    train: Shards
    validation: Shards
    vocabulary: Vocabulary
    fingerprint: str
    bytes_per_token: float | None


def read_shards(argument: str, share: float | None = None) -> tuple[Loaded, Origin]:
    """A shard file, or a folder of them, and which of its files are what.

    What files' names say is held out; else about a tenth (share) of all tokens: the last files, and the end of one too large.
    Raises UserError for truncated, mislabelled, empty or unreadable shards, ids beyond the vocabulary of a meta.json, and its
    mask among them.
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
    starts = _starts(arrays, by_name, chosen.held, share, meta.get("eos_id"))
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
    fingerprint = f"tokens:{digests.hexdigest()[:16]}"
    return Loaded(Shards(train), Shards(held), vocabulary, fingerprint, meta.get("bytes_per_token")), origin


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
    if _has_index(path):
        ends = np.cumsum(_index(path)[1])
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


def open_shard(path: Path, dtype: str | None = None) -> np.ndarray:
    """Map one shard, its layout found from its content. `dtype` is of headerless files (default uint16). Returns (T,)."""
    try:
        with path.open("rb") as file:
            start = file.read(files.LONGEST_START)
        if start.startswith(b"\x93NUMPY"):
            array = _numpy(path)
        elif _has_index(path):
            array = _megatron(path)
        elif len(start) >= 12 and int(np.frombuffer(start[:12], dtype="<i4")[0]) in LLMC:
            array = _llmc(path, np.frombuffer(start[:12], dtype="<i4"))
        else:
            files.check_tokens(path, start)
            array = _headerless(path, np.dtype(dtype or "uint16"), told=dtype is not None)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    return array


def _mapped(path: Path, dtype: Any, offset: int = 0) -> np.ndarray:
    if path.stat().st_size <= offset:
        raise UserError(f"{path} has no tokens: remove it, or write it again")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset)


def _numpy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is a damaged .npy file: {error}") from None
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; token shards are one row of whole numbers")
    if not isinstance(array, np.memmap) or not len(array):
        raise UserError(f"{path} has no tokens: remove it, or write it again")
    return array


def _llmc(path: Path, head: np.ndarray) -> np.ndarray:
    version, dtype = LLMC[int(head[0])]
    if head[1] != version:
        raise UserError(f"{path}: llm.c header version {head[1]}, but {version} goes with magic {head[0]}")
    expected = 1024 + int(head[2]) * np.dtype(dtype).itemsize
    _check_size(path, expected, f"its header announces {head[2]} tokens")
    return _mapped(path, dtype, 1024)


def _has_index(path: Path) -> bool:
    return os.path.lexists(path.with_suffix(".idx"))


def _megatron(path: Path) -> np.ndarray:
    dtype, lengths = _index(path)
    tokens = int(lengths.sum(dtype=np.int64))
    _check_size(path, tokens * dtype.itemsize, f"its index announces {tokens} tokens of {dtype}")
    return _mapped(path, dtype)


def _index(path: Path) -> tuple[np.dtype, np.ndarray]:
    """The type of a Megatron file's tokens, and the length of each of its sequences."""
    where = path.with_suffix(".idx")
    index = files.read(where)
    if index[:9] != b"MMIDIDX\0\0" or len(index) < 34:
        raise UserError(f"{where} is no Megatron index (it starts with MMIDIDX)")
    code, count = index[17], int.from_bytes(index[18:26], "little")
    if code not in MEGATRON_DTYPES:
        raise UserError(f"{where}: dtype code {code} isn't one of tokens ({list(MEGATRON_DTYPES)})")
    if len(index) < 34 + 4 * count:
        raise UserError(f"{where} is truncated: it announces {count} sequences")
    lengths = np.frombuffer(index, dtype="<i4", count=count, offset=34)
    if count and int(lengths.min()) < 0:
        raise UserError(f"{where} is damaged: a sequence of {int(lengths.min())} tokens")
    return np.dtype(MEGATRON_DTYPES[code]), lengths


def _headerless(path: Path, dtype: np.dtype, *, told: bool) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, no whole number of {dtype} tokens: it is truncated or of another type"
        )
    array = _mapped(path, dtype)
    sample = np.asarray(array[: 2 * (CHUNK // 2)])
    # 32-bit ids read as 16-bit ones: every second is a high half, nearly always below 4.
    if not told and len(sample) >= 16 and size % 4 == 0 and sample[1::2].max() < 4 <= sample[::2].max():
        raise UserError(f'{path} looks like uint32 tokens: say so in a {META} beside it, {{"dtype": "uint32"}}')
    return array


def _check_size(path: Path, expected: int, why: str) -> None:
    size = path.stat().st_size
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise UserError(f"{path} is {state}: {size} bytes, but {why}, which makes {expected}")


@lru_cache(maxsize=4096)
def _scan(
    path: Path, size: int, modified_ns: int, dtype: str, offset: int, mask: int | None
) -> tuple[bytes, int, int | None]:
    """sha256 and largest id of a shard, and where the mask first is, in one pass; size and time of change are in the cache's
    key."""
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


def write_shards(
    folder: Path, train_T: np.ndarray, validation_T: np.ndarray, vocabulary: Vocabulary, bytes_per_token: float | None
) -> None:
    """Write train.bin and val.bin in llm.c's layout, and the vocabulary and bytes per held-out token as meta.json."""
    magic, version = (20240520, 1) if vocabulary.dtype is np.uint16 else (20240801, 7)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {
        "vocab_size": vocabulary.size,
        "mask_id": vocabulary.mask,
        "eos_id": vocabulary.eos,
        "pad_id": vocabulary.pad,
    }
    content = ids | {"bytes_per_token": bytes_per_token}
    (folder / META).write_text(json.dumps(content, indent=2) + "\n")
    for name, array in (("val.bin", validation_T), ("train.bin", train_T)):  # of val.bin alone nothing can be learned
        head = np.zeros(256, dtype="<i4")
        head[:3] = magic, version, len(array)
        with (folder / name).open("wb") as file:
            file.write(head.tobytes())
            file.write(array.astype(vocabulary.dtype).tobytes())
