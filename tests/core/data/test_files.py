"""Files that others wrote, whole and with every fault: each is data, or one line that names the file and the place."""

import gzip
import importlib.util
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from core.config.data import DataConfig
from core.data.corpora import load
from core.data.corpus import Corpus
from core.data.files import find
from core.errors import UserError

LINES = [f"line {i} of some text" for i in range(200)]
TEXT = "\n".join(LINES)
ROWS = "\n".join(json.dumps({"text": line}) for line in LINES)
TOKENS = np.arange(20_000, dtype="<u2") % 500
Make = Callable[[Path], object]


def corpus(name: str, tokenizer: str = "bytes") -> Corpus:
    return load(DataConfig(corpus=name, tokenizer=tokenizer, sequence_length=32, validation_sequences=1))


def refused(name: str, expected: str, tokenizer: str = "bytes") -> None:
    with pytest.raises(UserError, match=expected) as error:
        corpus(name, tokenizer)
    assert "\n" not in str(error.value)


ROW_FAULTS = {  # what is wrong, and what the error says behind the file's name
    "empty": (b"", "no text|has 0 pairs"),
    "cut": (b'{"a": "b', ":1 is not JSON: Unterminated string"),
    "utf-16": ('{"a": "b"}'.encode("utf-16"), " is UTF-16 or UTF-32: save it as UTF-8"),
    "latin-1": (b'{}\n{"a": "\xfc"}', r":\d .*isn't UTF-8|:1 has no text"),
    "NUL": (b"\0", ":1 is not JSON"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ":1 is not JSON: nested too deeply"),
    "list": (b"[1]", ":1 must be an object"),
    "huge number": (b'{"a": ' + b"9" * 9999 + b"}", ":1 is not JSON"),
    "key twice": (b'{"text": "a", "text": "b"}', ':1 is not JSON: it has "text" twice'),
    "gzip": (gzip.compress(ROWS.encode()), r" is compressed \(gzip\): unpack it"),
    "parquet": (b"PAR1....", " is parquet: let its name end in .parquet"),
}


@pytest.mark.parametrize("kind", ["text", "instructions", "preferences"])
@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_rows_with_a_fault_are_refused(tmp_path: Path, kind: str, fault: str) -> None:
    content, expected = ROW_FAULTS[fault]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    refused(f"{kind}:{path}", expected if fault == "empty" else f"rows.jsonl({expected})")


@pytest.mark.parametrize("value", [None, 3, ["x"], {"x": 1}, True, "\ud800"])
@pytest.mark.parametrize(
    ("kind", "keys"),
    [("text", ("text",)), ("instructions", ("response", "prompt")), ("preferences", ("rejected", "prompt", "chosen"))],
)
def test_values_that_are_no_text_are_refused(tmp_path: Path, kind: str, keys: tuple[str, ...], value: object) -> None:
    rows = [dict.fromkeys(keys, "abc")] * 200
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0] | {keys[0]: value}])))
    if kind == "text" and value is None:  # as in a table
        assert dict(corpus(f"text:{path}").origin.passed) == {"without text": 1}
        return
    said = (
        "isn't UTF-8 text: '.ud800' is half a character"
        if isinstance(value, str)
        else f'has no text under "{keys[0]}", but'
    )
    refused(f"{kind}:{path}", f"rows.jsonl:201 {said}")


def test_messages_with_half_a_character_are_refused(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud800"}]
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"messages": said})] * 30))
    with pytest.raises(UserError, match="rows.jsonl:1 isn't UTF-8 text"):
        load(DataConfig(corpus=f"instructions:{tmp_path / 'rows.jsonl'}", sequence_length=128))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + ROWS.encode()),
        ("a.jsonl", ROWS.replace("\n", "\r\n").encode()),
        ("A.JSONL", ROWS.encode() + b"\n\n"),
        ("a.ndjson", ROWS.encode()),
    ],
)
def test_rows_with_a_mark_or_other_line_ends_are_the_same_data(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = corpus(f"text:{tmp_path}")
    assert len(found.train_T) + len(found.validation_T) == len(TEXT) + 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "has no text: 0 documents .*without text 1"),
        ("a.txt", TEXT.encode("utf-16"), "a.txt is UTF-16"),
        ("a.txt", gzip.compress(TEXT.encode()), "a.txt is compressed"),
        ("a.json", ROWS.encode(), "a.json is one JSON value: .* a line, into a .jsonl"),
        ("a.jsonl.gz", gzip.compress(ROWS.encode()), "a.jsonl.gz is compressed"),
        ("a.zst", b"\x28\xb5\x2f\xfd" + b"x" * 999, "a.zst is compressed"),
        ("a.npy", b"\x93NUMPY" + b"x" * 999, "a.npy is a NumPy array: .*tokens:PATH"),
        ("a.pdf", b"%PDF-1.7" + b"x" * 999, "a.pdf is PDF: write its text into a .txt"),
        ("a.txt", b"\x89PNG\r\n" + b"x" * 999, "a.txt is an image"),
        ("a.txt", b"\0\x05\x16\x07" + b"\0" * 999, "a.txt is what macOS keeps of another file"),
        ("a.db", b"SQLite format 3\0" + b"\0" * 999, "a.db is a database"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(f"text:{tmp_path / name}", expected)


def test_a_text_loses_its_mark_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\0\r\n")
    found = corpus(f"text:{tmp_path}")
    assert (
        bytes(found.train_T[:6].astype(np.uint8)) == b"line 0"
        and len(found.train_T) + len(found.validation_T) == len(TEXT) + 5
    )


def columns() -> dict[str, tuple[object, str | None]]:
    pa = pytest.importorskip("pyarrow")
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    return {
        "text": (pa.array(LINES), None),
        "large": (pa.array(LINES, pa.large_string()), None),
        "dictionary": (pa.array(LINES).dictionary_encode(), None),
        "nulls": (pa.array([None, *LINES]), None),
        "bytes": (pa.array([b"a"]), "holds binary, not text: write it as a column of strings"),
        "lists": (pa.array([["a"]]), r"holds list<element: string>, not text"),
        "integers": (pa.array([1]), "holds int64, not text"),
        "structures": (pa.array([{"a": 1}]), "holds struct<a: int64>, not text"),
        "numbers by name": (pa.array([1]).dictionary_encode(), "holds int64, not text"),
        "no UTF-8": (broken, "can't be read as parquet: .*UTF8"),
    }


@pytest.mark.parametrize("kind", columns())
def test_columns_are_text_or_refused(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column, expected = columns()[kind]
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    if expected is not None:
        refused(f"text:{tmp_path}", f"a.parquet.*{expected}")
        return
    found = corpus(f"text:{tmp_path}")
    assert len(found.train_T) + len(found.validation_T) == len(TEXT) + 1
    assert dict(found.origin.passed) == ({"without text": 1} if kind == "nulls" else {})


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    twice = pyarrow.Table.from_arrays([pyarrow.array(LINES)] * 2, names=["text", "text"])
    parquet.write_table(twice, path)
    refused(f"text:{tmp_path}", 'a.parquet has 2 columns "text"')
    whole = path.read_bytes()
    for content in (whole[:-40], b"", whole[:20] + b"\xff" * 200 + whole[220:]):
        path.write_bytes(content)
        refused(f"text:{tmp_path}", "a.parquet")


def llmc(count: int) -> bytes:
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240520, 1, count
    return head.tobytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("b.bin", b"", "b.bin has 0 bytes"),
        ("b.bin", llmc(0), "b.bin has no tokens: remove it, or write it again"),
        ("b.npy", b"\x93NUMPY\x01\0v\0{", "b.npy is a damaged .npy file"),
        ("a.idx", b"MMIDIDX\0\0" + struct.pack("<QBQQii", 1, 8, 2, 1, -5, 20_005), "a.idx is damaged: a sequence of -5"),
        ("meta.json", b"{", "meta.json: not JSON"),
        ("meta.json", b"[" * 100_000, "meta.json: not JSON: nested too deeply"),
        ("meta.json", b'{"vocab_size": true}', "meta.json must hold whole numbers"),
        ("meta.json", b'{"eos_id": -1}', "meta.json must hold whole numbers from 0 on"),
        ("meta.json", b'{"bytes_per_token": NaN}', "meta.json: not JSON"),
        ("meta.json", b'{"bytes_per_token": 0}', "bytes_per_token must be a number above 0"),
        ("meta.json", b'{"vocab_size": 600, "mask_id": 700}', "mask_id=700 is beyond vocab_size=600"),
        ("meta.json", b'{"vocab_size": 0}', "vocab_size must be at least 1, not 0"),
        ("b.bin", gzip.compress(b"a" * 10_000) + b"x" * 100, "b.bin is compressed"),
        ("b.bin", b"PK\x03\x04" + b"x" * 100, "b.bin is an archive"),
        ("b.bin", b"\0\x05\x16\x07" + b"\0" * 100, "b.bin is what macOS keeps"),
        ("meta.json", b'{"vocab_size": 600, "mask_id": 499}', r"a.bin has the mask, id 499 by .*\(token 499\)"),
    ],
)  # fmt: skip
def test_a_fault_beside_a_good_shard_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / "a.bin").write_bytes(TOKENS.tobytes())
    (tmp_path / name).write_bytes(content)
    refused(f"tokens:{tmp_path}", expected)


@pytest.mark.parametrize("name", ["a.idx", "meta.json"])
def test_a_folder_in_a_files_place_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.bin").write_bytes(TOKENS.tobytes())
    (tmp_path / name).mkdir()
    refused(f"tokens:{tmp_path}", f"{name}.*: Is a directory")


def test_no_array_of_another_kind_is_read(tmp_path: Path) -> None:
    for array in (np.zeros(0, np.uint16), np.zeros((2, 50), int), np.zeros(5), np.array([{}]), -TOKENS.astype(int)):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        refused(f"tokens:{tmp_path}", "a.npy")
    (tmp_path / "a.txt").write_text(TEXT)
    refused(f"tokens:{tmp_path / 'a.txt'}", "has no .bin or .npy file")


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0"', b"\xff", b"null", b"[" * 100_000, None])
def test_damaged_tokenizers_are_refused(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    path = tmp_path / "tokenizer.json"
    path.mkdir() if content is None else path.write_bytes(content)
    refused(f"text:{tmp_path}", "data.tokenizer=.*tokenizer.json (is no tokenizer.json|can't be read)", str(path))


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    for suffix, content in ((b"txt", TEXT), (b"jsonl", ROWS)):
        folder = tmp_path / os.fsdecode(suffix)
        folder.mkdir()
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9." + suffix)).write_text(content)
        assert len(corpus(f"text:{folder}").train_T) > 3000
    table = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet")
    if importlib.util.find_spec("pyarrow"):
        from pyarrow import parquet
        from pyarrow import table as columns_of

        with open(table, "wb") as file:
            parquet.write_table(columns_of({"text": LINES}), file)
        assert len(corpus(f"text:{tmp_path}").train_T) > 9000
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.bin")).write_bytes(TOKENS.tobytes())
    assert len(corpus(f"tokens:{tmp_path}").train_T) == 18_000


@pytest.mark.parametrize("kind", ["text", "tokens", "instructions", "preferences"])
def test_paths_that_cannot_be_are_refused(tmp_path: Path, kind: str) -> None:
    for path in ("", f"{tmp_path}/nowhere", f"{tmp_path}/caf\udce9", f"{tmp_path}/a\0b", f"{tmp_path}/{'a' * 5000}"):
        refused(f"{kind}:{path}", f"data.corpus={kind}:")
    (tmp_path / ".a.jsonl").write_text(ROWS)
    refused(f"{kind}:{tmp_path / '.a.jsonl'}", "dot files are no data")


@pytest.mark.parametrize(
    ("kind", "name"), [("text", "a.txt"), ("text", "a.jsonl"), ("tokens", "a.bin"), ("instructions", "a.jsonl")]
)
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(TOKENS.tobytes())
    opened = io.open

    def refuse(path: object, *rest: object, **options: object) -> object:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)

    with mock.patch("io.open", refuse):  # who tests may be allowed everything
        refused(f"{kind}:{tmp_path / name}", f"{name} can't be read: Permission denied")


def test_dot_files_are_no_data_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(TOKENS.tobytes())
    (tmp_path / "._train.bin").write_bytes(b"\0\5\x16\7" + b"x" * 4092)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.doc").write_bytes(b"x")
    (tmp_path / "tokenizer.json").write_text("{}")
    found = corpus(f"tokens:{tmp_path}")
    assert len(found.train_T) == 18_000 and dict(found.origin.passed) == {"dot files": 2, "files of other kinds": 1}
    texts = tmp_path / "texts"
    (texts / ".ipynb_checkpoints").mkdir(parents=True)
    (texts / "a.txt").write_text(TEXT)
    (texts / ".ipynb_checkpoints" / "a-checkpoint.txt").write_text(TEXT)
    found = corpus(f"text:{texts}")
    assert len(found.train_T) + len(found.validation_T) == len(TEXT) + 2
    assert list(found.origin.files) == ["a.txt"] and dict(found.origin.passed) == {"dot files": 1}


def test_a_folder_whose_own_path_has_a_dot_is_read(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "test").mkdir(parents=True)
    (tmp_path / ".cache" / "test" / "a.txt").write_text(TEXT)
    assert len(corpus(f"text:{tmp_path / '.cache' / 'test'}").train_T) > 3000


def test_links_are_followed_once_and_lead_somewhere(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b.txt").write_text(TEXT)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "again").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    os.mkfifo(tmp_path / "here" / "pipe.txt")
    (tmp_path / "here" / "c.txt").mkdir()
    paths, passed = find(tmp_path / "here", {".txt"})
    assert paths == [tmp_path / "here" / "linked" / "b.txt"] and dict(passed) == {"files of other kinds": 1}
    (tmp_path / "here" / "d.txt").symlink_to(tmp_path / "gone")
    refused(f"text:{tmp_path / 'here'}", "d.txt is a link to nothing: remove it, or bring back .*gone")
