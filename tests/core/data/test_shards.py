"""Token shards in the layouts that others write, whole and damaged."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora
from core.data.corpus import Corpus, Reading
from core.data.kinds.tokens import read_shards
from core.data.shards import Shards, open_shard, write_shards
from core.data.tokenizers import Vocabulary
from core.errors import UserError

TOKENS = np.random.default_rng(0).integers(0, 5000, size=4000)


def llmc(tokens: np.ndarray, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, len(tokens) if count is None else count
    return head.tobytes() + tokens.astype("<u2" if magic == 20240520 else "<u4").tobytes()


def megatron(tokens: np.ndarray, code: int, dtype: str, sequences: int = 4) -> tuple[bytes, bytes]:
    lengths = np.full(sequences, len(tokens) // sequences, dtype="<i4")
    pointers = np.arange(sequences, dtype="<i8") * lengths[0] * np.dtype(dtype).itemsize
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, sequences, sequences + 1)
    index += lengths.tobytes() + pointers.tobytes() + np.arange(sequences + 1, dtype="<i8").tobytes()
    return tokens.astype(dtype).tobytes(), index


def read(path: Path) -> Corpus:
    return read_shards(str(path), Reading())


def write(folder, layout: str):
    path = folder / "a.bin"
    if layout == "nanogpt":
        path.write_bytes(TOKENS.astype("<u2").tobytes())
    elif layout == "llm.c":
        path.write_bytes(llmc(TOKENS))
    elif layout == "llm.c, 32 bits":
        path.write_bytes(llmc(TOKENS, 20240801, 7))
    elif layout.startswith("megatron"):
        content, index = megatron(TOKENS, *((8, "<u2") if layout == "megatron" else (4, "<i4")))
        path.write_bytes(content)
        path.with_suffix(".idx").write_bytes(index)
    elif layout == "olmo":
        path = folder / "a.npy"
        path.write_bytes(TOKENS.astype("<u2").tobytes())
    else:
        path = folder / "a.npy"
        np.save(path, TOKENS.astype(np.uint32))
    return path


@pytest.mark.parametrize(
    "layout", ["nanogpt", "llm.c", "llm.c, 32 bits", "megatron", "megatron, int32", "olmo", "numpy"]
)
def test_layouts_are_told_by_their_content(tmp_path, layout: str) -> None:
    path = write(tmp_path, layout)
    assert np.array_equal(open_shard(path), TOKENS)
    corpus = read(path)
    train_T, held_T = corpus.train_T[:], corpus.validation_T[:]
    assert np.array_equal(np.concatenate([train_T, held_T]), TOKENS) and len(held_T) == 400
    assert corpus.vocabulary == Vocabulary(int(TOKENS.max()) + 1)
    assert corpus.fingerprint.startswith("tokens:") and read(path).fingerprint == corpus.fingerprint


def test_headerless_tokens_may_begin_with_any_two_bytes(tmp_path) -> None:
    for first in (0xFEFF, 0xFFFE):  # the marks of UTF-16
        (tmp_path / "a.bin").write_bytes(np.array([first, *range(99)], dtype="<u2").tobytes())
        assert len(read(tmp_path / "a.bin").train_T) == 90


def test_slices_are_read_across_the_seams() -> None:
    shards = Shards([np.arange(5), np.arange(5, 6), np.arange(6, 20)])
    for start, stop in [(0, 20), (3, 8), (5, 6), (4, 7), (18, 25), (20, 22)]:
        assert shards[start:stop].tolist() == list(range(start, min(stop, 20)))


def test_named_shards_are_held_out_and_order_is_by_name(tmp_path) -> None:
    for name, part in (("b_train", TOKENS[1000:2000]), ("a_train", TOKENS[:1000]), ("val_0", TOKENS[2000:2500])):
        (tmp_path / f"{name}.bin").write_bytes(llmc(part))
    corpus = read(tmp_path)
    assert np.array_equal(corpus.train_T[:], TOKENS[:2000])
    assert np.array_equal(corpus.validation_T[:], TOKENS[2000:2500])
    (tmp_path / "val_0.bin").write_bytes(llmc(TOKENS[2100:2600]))
    assert read(tmp_path).fingerprint != corpus.fingerprint


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (llmc(TOKENS)[:-2], r"truncated: 9022 bytes, but its header announces 4000 tokens, which makes 9024"),
        (llmc(TOKENS, count=10), "too long"),
        (llmc(TOKENS, version=3), "header version 3, but 1 goes with magic 20240520"),
        (b"x" * 101, "no whole number of uint16 tokens"),
        (TOKENS.astype("<u4").tobytes(), "looks like uint32 tokens: say so"),
    ],
)
def test_damaged_and_mislabelled_shards_are_refused(tmp_path, content: bytes, expected: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "a.bin")


def test_a_megatron_pair_that_disagrees_is_refused(tmp_path) -> None:
    path = write(tmp_path, "megatron")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated: 7990 bytes, but its index announces 4000 tokens of uint16"):
        read(path)
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(UserError, match="is truncated: it announces 4 sequences"):
        read(path)
    index.write_bytes(b"other")
    with pytest.raises(UserError, match="is no Megatron index"):
        read(path)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path) -> None:
    write(tmp_path, "nanogpt")
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 4000}))
    with pytest.raises(UserError, match=r"token id 499\d, beyond vocab_size=4000 of its meta.json"):
        read(tmp_path)


def test_headerless_32_bit_shards_are_read_when_told(tmp_path) -> None:
    (tmp_path / "a.npy").write_bytes(TOKENS.astype("<u4").tobytes())
    (tmp_path / "meta.json").write_text(json.dumps({"dtype": "uint32", "vocab_size": 5001, "mask_id": 5000}))
    corpus = read(tmp_path)
    assert corpus.train_T[:10].tolist() == TOKENS[:10].tolist() and corpus.vocabulary == Vocabulary(5001, 5000)


@pytest.mark.parametrize("size", [8192, 100_000])
def test_what_is_written_reads_back(tmp_path, size: int) -> None:
    vocabulary = Vocabulary(size, size - 1, 0, 1)
    tokens = np.random.default_rng(1).integers(0, size - 1, 3000)
    write_shards(tmp_path, tokens[:2500], tokens[2500:], vocabulary, 3.25)
    corpus = read(tmp_path)
    assert corpus.bytes_per_token == 3.25 and corpus.vocabulary == vocabulary
    assert corpus.train_T[:].tolist() == tokens[:2500].tolist()
    assert corpus.validation_T[:].tolist() == tokens[2500:].tolist()


def test_a_corpus_of_shards_stays_on_disk(tmp_path) -> None:
    write(tmp_path, "nanogpt")
    corpus = corpora.load(DataConfig(corpus=f"tokens:{tmp_path}", sequence_length=16, validation_sequences=8))
    assert all(isinstance(part, np.memmap) for part in corpus.train_T.parts)
