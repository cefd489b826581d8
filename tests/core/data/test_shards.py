"""Token shards in the layouts that others write, whole and damaged."""

import json
import struct

import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora
from core.data.shards import Shards, open_shard, read_shards, write_shards
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
    train, held, vocabulary, digest, _ = read_shards(str(path), None)[0]
    assert np.array_equal(np.concatenate([train[:], held[:]]), TOKENS) and len(held) == 400
    assert vocabulary == Vocabulary(int(TOKENS.max()) + 1)
    assert digest.startswith("tokens:") and read_shards(str(path), None)[0][3] == digest


def test_headerless_tokens_may_begin_with_any_two_bytes(tmp_path) -> None:
    for first in (0xFEFF, 0xFFFE):  # the marks of UTF-16
        (tmp_path / "a.bin").write_bytes(np.array([first, *range(99)], dtype="<u2").tobytes())
        assert len(read_shards(str(tmp_path / "a.bin"), None)[0].train) == 90


def test_slices_are_read_across_the_seams() -> None:
    shards = Shards([np.arange(5), np.arange(5, 6), np.arange(6, 20)])
    for start, stop in [(0, 20), (3, 8), (5, 6), (4, 7), (18, 25), (20, 22)]:
        assert shards[start:stop].tolist() == list(range(start, min(stop, 20)))


def test_named_shards_are_held_out_and_order_is_by_name(tmp_path) -> None:
    for name, part in (("b_train", TOKENS[1000:2000]), ("a_train", TOKENS[:1000]), ("val_0", TOKENS[2000:2500])):
        (tmp_path / f"{name}.bin").write_bytes(llmc(part))
    train, held, _, digest, _ = read_shards(str(tmp_path), None)[0]
    assert np.array_equal(train[:], TOKENS[:2000]) and np.array_equal(held[:], TOKENS[2000:2500])
    (tmp_path / "val_0.bin").write_bytes(llmc(TOKENS[2100:2600]))
    assert read_shards(str(tmp_path), None)[0][3] != digest


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (llmc(TOKENS)[:-2], r"truncated: 9022 bytes, but its header announces 4000 tokens, which makes 9024"),
        (llmc(TOKENS, count=10), "too long"),
        (llmc(TOKENS, version=3), "header version 3, but 1 goes with magic 20240520"),
        (b"x" * 101, "no whole number of uint16 tokens"),
        (b"", "no whole number of uint16 tokens"),
        (TOKENS.astype("<u4").tobytes(), "looks like uint32 tokens: say so"),
        (b"\x93NUMPY rubbish", "damaged .npy"),
    ],
)
def test_damaged_and_mislabelled_shards_are_refused(tmp_path, content: bytes, expected: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_shards(str(tmp_path / "a.bin"), None)[0]


def test_a_megatron_pair_that_disagrees_is_refused(tmp_path) -> None:
    path = write(tmp_path, "megatron")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated: 7990 bytes, but its index announces 4000 tokens of uint16"):
        read_shards(str(path), None)[0]
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(UserError, match="is truncated: it announces 4 sequences"):
        read_shards(str(path), None)[0]
    index.write_bytes(b"other")
    with pytest.raises(UserError, match="is no Megatron index"):
        read_shards(str(path), None)[0]


def test_ids_beyond_the_vocabulary_are_refused(tmp_path) -> None:
    write(tmp_path, "nanogpt")
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 4000}))
    with pytest.raises(UserError, match=r"token id 499\d, beyond vocab_size=4000 of its meta.json"):
        read_shards(str(tmp_path), None)[0]
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": "many"}))
    with pytest.raises(UserError, match="must hold whole numbers"):
        read_shards(str(tmp_path), None)[0]


def test_headerless_32_bit_shards_are_read_when_told(tmp_path) -> None:
    (tmp_path / "a.npy").write_bytes(TOKENS.astype("<u4").tobytes())
    (tmp_path / "meta.json").write_text(json.dumps({"dtype": "uint32", "vocab_size": 5001, "mask_id": 5000}))
    train, _, vocabulary, *_ = read_shards(str(tmp_path), None)[0]
    assert train[:10].tolist() == TOKENS[:10].tolist() and vocabulary == Vocabulary(5001, 5000)


@pytest.mark.parametrize("size", [8192, 100_000])
def test_what_is_written_reads_back(tmp_path, size: int) -> None:
    vocabulary = Vocabulary(size, size - 1, 0, 1)
    tokens = np.random.default_rng(1).integers(0, size - 1, 3000)
    write_shards(tmp_path, tokens[:2500], tokens[2500:], vocabulary, 3.25)
    train, held, found, _, bytes_per_token = read_shards(str(tmp_path), None)[0]
    assert bytes_per_token == 3.25
    assert (
        found == vocabulary
        and train[:].tolist() == tokens[:2500].tolist()
        and held[:].tolist() == tokens[2500:].tolist()
    )


def test_a_corpus_of_shards_stays_on_disk(tmp_path) -> None:
    write(tmp_path, "nanogpt")
    corpus = corpora.load(DataConfig(corpus=f"tokens:{tmp_path}", sequence_length=16, validation_sequences=8))
    assert all(isinstance(part, np.memmap) for part in corpus.train_T.parts)
