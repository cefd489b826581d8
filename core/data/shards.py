"""Token shards on disk, memory-mapped, in the layouts that others write.

nanoGPT: headerless uint16 (.bin). llm.c: 256 int32 of header, then uint16 or uint32 (.bin). Megatron: .bin beside .idx.
OLMo: headerless uint16 or uint32 despite its name (.npy). NumPy's own .npy is read too.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.data import files
from core.data.tokenizers import Vocabulary
from core.errors import UserError

META = "meta.json"
LLMC = {20240520: (1, np.uint16), 20240801: (7, np.uint32)}  # magic: (version, dtype)
MEGATRON_DTYPES = {1: np.uint8, 4: np.int32, 5: np.int64, 8: np.uint16}
CHUNK = 2**24


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


def open_shard(path: Path, dtype: str | None = None) -> np.ndarray:
    """Map one shard, its layout found from its content. `dtype` is of headerless files (default uint16). Returns (T,)."""
    try:
        with path.open("rb") as file:
            start = file.read(files.LONGEST_START)
        if start.startswith(b"\x93NUMPY"):
            array = _numpy(path)
        elif has_index(path):
            array = _megatron(path)
        elif len(start) >= 12 and int(np.frombuffer(start[:12], dtype="<i4")[0]) in LLMC:
            array = _llmc(path, np.frombuffer(start[:12], dtype="<i4"))
        else:
            files.check_start(path, start, least=3)
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


def has_index(path: Path) -> bool:
    return os.path.lexists(path.with_suffix(".idx"))


def _megatron(path: Path) -> np.ndarray:
    dtype, lengths = read_index(path)
    tokens = int(lengths.sum(dtype=np.int64))
    _check_size(path, tokens * dtype.itemsize, f"its index announces {tokens} tokens of {dtype}")
    return _mapped(path, dtype)


def read_index(path: Path) -> tuple[np.dtype, np.ndarray]:
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
