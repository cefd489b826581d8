"""Token shards on disk, memory-mapped, in the layouts that others write.

nanoGPT: headerless uint16 (.bin). llm.c: 256 int32 of header, then uint16 or uint32 (.bin). Megatron: .bin beside .idx.
OLMo: headerless uint16 or uint32 despite its name (.npy). NumPy's own .npy is read too.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.data.tokenizers import Vocabulary
from core.errors import UserError

META = "meta.json"
LLMC = {20240520: (1, np.uint16), 20240801: (7, np.uint32)}  # magic: (version, dtype)
MEGATRON_DTYPES = {1: np.uint8, 4: np.int32, 5: np.int64, 8: np.uint16}
CHUNK = 2**24
TAIL = 0.1


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


def load_shards(argument: str) -> Loaded:
    """A shard file, or a folder of them.

    Files with "val" in their name are held out; else the last of several; else the last tenth of the only one.
    Raises UserError for truncated, mislabelled or unreadable shards, and ids beyond the vocabulary of a meta.json.
    """
    root = Path(os.path.expanduser(argument))
    if not argument or not root.exists():
        raise UserError(f"data.corpus=tokens:{argument}: '{argument}' is not a folder or file of token shards")
    paths = [root] if root.is_file() else sorted(p for p in root.iterdir() if p.suffix in (".bin", ".npy"))
    if not paths:
        raise UserError(f"data.corpus=tokens:{argument} has no .bin or .npy file")
    meta = _meta(root.parent if root.is_file() else root)
    arrays = {path: open_shard(path, meta.get("dtype")) for path in paths}
    train, held = _parts(arrays)
    digests, largest = hashlib.sha256(str(len(train)).encode()), 0
    for path, array in arrays.items():
        stat = path.stat()
        digest, top = _scan(path, stat.st_size, stat.st_mtime_ns, str(array.dtype), array.offset)  # type: ignore[attr-defined]
        digests.update(digest)
        largest = max(largest, top)
        if "vocab_size" in meta and top >= meta["vocab_size"]:
            raise UserError(f"{path} has the token id {top}, beyond vocab_size={meta['vocab_size']} of its {META}")
    vocabulary = Vocabulary(meta.get("vocab_size", largest + 1), *(meta.get(f"{n}_id") for n in ("mask", "eos", "pad")))
    fingerprint = f"tokens:{digests.hexdigest()[:16]}"
    return Loaded(Shards(train), Shards(held), vocabulary, fingerprint, meta.get("bytes_per_token"))


def _parts(arrays: dict[Path, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    held = [path for path in arrays if "val" in path.stem]
    if not held and len(arrays) > 1:
        held = [list(arrays)[-1]]
    if held and len(held) < len(arrays):
        return [a for p, a in arrays.items() if p not in held], [arrays[p] for p in held]
    whole = list(arrays.values())
    if len(whole) > 1:
        raise UserError(f"every shard in {next(iter(arrays)).parent} is named as validation: none is left to train on")
    cut = int(len(whole[0]) * (1 - TAIL))
    return [whole[0][:cut]], [whole[0][cut:]]


def open_shard(path: Path, dtype: str | None = None) -> np.ndarray:
    """Map one shard, its layout found from its content. `dtype` is of headerless files (default uint16). Returns (T,)."""
    with path.open("rb") as file:
        is_numpy = file.read(6) == b"\x93NUMPY"
    if is_numpy:
        return _numpy(path)
    if path.with_suffix(".idx").exists():
        return _megatron(path)
    head = np.fromfile(path, dtype="<i4", count=3)
    if len(head) == 3 and int(head[0]) in LLMC:
        return _llmc(path, head)
    return _headerless(path, np.dtype(dtype or "uint16"), told=dtype is not None)


def _numpy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is a damaged .npy file: {error}") from None
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; token shards are one row of whole numbers")
    return array


def _llmc(path: Path, head: np.ndarray) -> np.ndarray:
    version, dtype = LLMC[int(head[0])]
    if head[1] != version:
        raise UserError(f"{path}: llm.c header version {head[1]}, but {version} goes with magic {head[0]}")
    expected = 1024 + int(head[2]) * np.dtype(dtype).itemsize
    _check_size(path, expected, f"its header announces {head[2]} tokens")
    return np.memmap(path, dtype=dtype, mode="r", offset=1024)


def _megatron(path: Path) -> np.ndarray:
    index = path.with_suffix(".idx").read_bytes()
    if index[:9] != b"MMIDIDX\0\0" or len(index) < 34:
        raise UserError(f"{path.with_suffix('.idx')} is no Megatron index (it starts with MMIDIDX)")
    code, count = index[17], int.from_bytes(index[18:26], "little")
    if code not in MEGATRON_DTYPES:
        raise UserError(f"{path.with_suffix('.idx')}: dtype code {code} isn't one of tokens ({list(MEGATRON_DTYPES)})")
    if len(index) < 34 + 4 * count:
        raise UserError(f"{path.with_suffix('.idx')} is truncated: it announces {count} sequences")
    tokens = int(np.frombuffer(index, dtype="<i4", count=count, offset=34).sum(dtype=np.int64))
    dtype = np.dtype(MEGATRON_DTYPES[code])
    _check_size(path, tokens * dtype.itemsize, f"its index announces {tokens} tokens of {dtype}")
    return np.memmap(path, dtype=dtype, mode="r")


def _headerless(path: Path, dtype: np.dtype, *, told: bool) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes, no whole number of {dtype} tokens: it is truncated or of another type"
        )
    array = np.memmap(path, dtype=dtype, mode="r")
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
def _scan(path: Path, size: int, modified_ns: int, dtype: str, offset: int) -> tuple[bytes, int]:
    """sha256 and largest id of a shard, in one pass; size and time of change are in the cache's key."""
    digest, largest = hashlib.sha256(), 0
    array = np.memmap(path, dtype=dtype, mode="r", offset=offset)
    for start in range(0, len(array), CHUNK):
        chunk = np.asarray(array[start : start + CHUNK])
        if int(chunk.min()) < 0:
            raise UserError(f"{path} has negative token ids: it is of another type than {dtype}")
        digest.update(chunk.tobytes())
        largest = max(largest, int(chunk.max()))
    return digest.digest(), largest


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error}") from None
    numbers = ("vocab_size", "mask_id", "eos_id", "pad_id")
    if not isinstance(meta, dict) or any(not isinstance(meta.get(n, 0), int | None) for n in numbers):
        raise UserError(f"{path} must hold whole numbers under {', '.join(numbers)}")
    if not isinstance(meta.get("bytes_per_token") or 1.0, int | float):
        raise UserError(f"{path}: bytes_per_token must be a number, not {meta['bytes_per_token']}")
    if meta.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise UserError(f"{path}: dtype must be uint16 or uint32, not {meta['dtype']}")
    return {key: value for key, value in meta.items() if value is not None}


def write_shards(
    folder: Path, train_T: np.ndarray, validation_T: np.ndarray, vocabulary: Vocabulary, bytes_per_token: float | None
) -> None:
    """Write train.bin and val.bin in llm.c's layout, and the vocabulary and bytes per held-out token as meta.json."""
    magic, version = (20240520, 1) if vocabulary.dtype is np.uint16 else (20240801, 7)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("train.bin", train_T), ("val.bin", validation_T)):
        head = np.zeros(256, dtype="<i4")
        head[:3] = magic, version, len(array)
        with (folder / name).open("wb") as file:
            file.write(head.tobytes())
            file.write(array.astype(vocabulary.dtype).tobytes())
    ids = {
        "vocab_size": vocabulary.size,
        "mask_id": vocabulary.mask,
        "eos_id": vocabulary.eos,
        "pad_id": vocabulary.pad,
    }
    content = ids | {"bytes_per_token": bytes_per_token}
    (folder / META).write_text(json.dumps(content, indent=2) + "\n")
