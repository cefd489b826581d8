"""Held-out data: by whole words of names, else about a tenth by size; and the line that describes them."""

import struct
from pathlib import Path

import numpy as np
import pytest

from core.config.data import DataConfig
from core.config.run import RunConfig, config_hash, content_hash, to_dict
from core.data.corpora import describe, load
from core.data.corpus import Corpus, Reading, text_kinds
from core.data.kinds.tokens import read_shards
from core.data.splits import boundary, hold_back, role, words
from core.errors import UserError

LINE = "some words of a line\n"


def write(folder: Path, **files: str) -> str:
    """Texts by name, "__" for a folder's end. Returns what names them as a corpus."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return f"text:{folder}"


def config(corpus: str, share: float | None = None) -> DataConfig:
    return DataConfig(corpus=corpus, sequence_length=8, validation_sequences=1, held_out_share=share)


def sizes(corpus: Corpus) -> tuple[int, int]:
    return len(corpus.train_T), len(corpus.validation_T)


NAMED = {
    "validation": "val.bin val0.bin fineweb_val_000000.bin valData.txt val/part-0.txt my-dev.txt VALIDATION.txt held-out.txt "
    "HeldOut/a.txt heldout.txt hold-out.txt holdout/0.txt valid_1.npy train/val.txt val_eval.txt",
    "train": "train-00000-of-00010.parquet TrainSet.txt train.bin eTrain.txt",
    "test": "test.txt XMLTest.txt test_2.txt train_test_split.txt val/test.txt",
    "eval": "eval.txt train_eval.txt",
    None: "interval.txt carnival.bin latest.txt contest.txt retrain.txt developer.txt évals.txt held.txt a.val",
}


@pytest.mark.parametrize("expected", NAMED)
def test_whole_words_say_what_a_file_is_for(expected: str | None) -> None:
    names = NAMED[expected].split()
    assert {name: role(name) for name in names} == dict.fromkeys(names, expected)


def test_words_are_parted_by_capitals_digits_and_signs() -> None:
    assert words("aB_CDe-fg9hi") == {"a", "b", "c", "de", "fg", "hi"}


def test_a_title_before_one_long_line_is_no_training_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"t" * 90 + b"\n" + b"x" * 100_000)
    train, held = sizes(load(config(f"text:{tmp_path / 'a.txt'}")))
    assert (train, held) == (90_081 + 1, 10_010 + 1)  # each with an end token


def test_a_large_text_beside_a_small_one_gives_its_end(tmp_path: Path) -> None:
    corpus = load(config(write(tmp_path, input=LINE * 40_000, readme="read me " * 60)))
    assert sizes(corpus)[1] / sum(sizes(corpus)) == pytest.approx(0.1, abs=0.01)
    documents = text_kinds()["text"](str(tmp_path))
    assert sum(map(len, documents.train.values())) > 700_000 and all(map(bytes.strip, documents.validation.values()))
    assert (
        b"".join(documents.train.values()).count(b"\n") + b"".join(documents.validation.values()).count(b"\n") == 40_000
    )


@pytest.mark.parametrize(
    "counts", [(1,), (2, 2), (1, 1, 1, 1, 1), (100, 1, 1), (1, 100), (3, 7, 90, 200, 1, 1, 1), tuple(range(1, 60))]
)
def test_about_a_tenth_is_held_out_of_documents_of_any_sizes(tmp_path: Path, counts: tuple[int, ...]) -> None:
    documents = text_kinds()["text"](write(tmp_path, **{f"d{i}": LINE * 20 * n for i, n in enumerate(counts)})[5:])
    held, train = (sum(map(len, part.values())) for part in (documents.validation, documents.train))
    assert held + train == len(LINE) * 20 * sum(counts) and 0.08 <= held / (held + train) <= 0.16


def test_no_character_is_cut() -> None:
    for text in ("é" * 5000, "漢字" * 3000, "🙂" * 2500):
        for at in range(9000, 9004):
            cut = boundary(content := text.encode(), at)
            assert content[:cut].decode() + content[cut:].decode() == text and at - 4 < cut <= at
    assert boundary(b"ab cd" + b"e" * 20, 5) == 3 and boundary(b"a\nb cd" + b"e" * 20, 6) == 2
    assert boundary(b"\xbf" * 100, 90) == 87  # no UTF-8, of which three bytes at most are stepped over


def test_sizes_are_held_back_in_order_until_there_is_enough() -> None:
    assert hold_back({"a": 100}, None) == {"a": 10}
    assert hold_back({"a": 5, "b": 5, "c": 90}, None) == {"a": 5, "b": 5}
    assert hold_back({"a": 5, "b": 95}, None) == {"a": 5, "b": 5}
    assert hold_back({"a": 9, "b": 91}, None) == {"a": 9}  # near enough
    assert hold_back({"a": 50, "b": 50}, 0.75) == {"a": 50, "b": 25}


def test_names_decide_and_tests_are_never_read(tmp_path: Path) -> None:
    corpus = write(tmp_path, train=LINE * 50, val__a=LINE * 10, test=LINE * 30, eval=LINE * 20, notes="note " * 20)
    (tmp_path / "test.jsonl").write_text("no JSON")  # nobody looks
    documents = text_kinds()["text"](str(tmp_path))
    assert set(documents.train) == {"train.txt", "notes.txt"} and set(documents.validation) == {"val/a.txt"}
    (said,) = describe([config(corpus)])
    assert said == (
        f"data.corpus={corpus}: 1,152 tokens to train on, 211 held out, from notes.txt, train.txt, val/a.txt; "
        "held out (15.5%): val/a.txt; passed over: files named eval 1, files named test 2"
    )


def test_eval_is_held_out_where_nothing_is_named_as_validation(tmp_path: Path) -> None:
    write(tmp_path, train=LINE * 50, eval=LINE * 10, test=LINE)
    assert set(text_kinds()["text"](str(tmp_path)).validation) == {"eval.txt"}
    write(tmp_path / "b", train=LINE * 50, test=LINE * 10)
    assert set(text_kinds()["text"](str(tmp_path / "b")).validation) == {"train.txt (tail)"}


@pytest.mark.parametrize("name", ["test", "val", "eval"])
def test_a_file_that_is_not_to_be_trained_on_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{name: LINE * 50})
    for path in (tmp_path, tmp_path / f"{name}.txt"):
        with pytest.raises(UserError, match=rf"no file is left to train on, but for .*\({name}.txt\)"):
            load(config(f"text:{path}"))
    (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 30)
    with pytest.raises(UserError, match="no file is left to train on"):
        load(config(f"instructions:{tmp_path / f'{name}.jsonl'}"))


def test_a_share_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path, train=LINE * 20, val=LINE * 80)
    with pytest.raises(
        UserError, match=r"holds out 0.8 of its tokens .*val.txt.*between 1% and 30%.*held_out_share=0.8$"
    ):
        load(config(corpus))
    assert load(config(corpus, 0.8)).origin.named
    with pytest.raises(
        UserError, match=r"held_out_share=0.1, but .* holds out 0.8 .* names: set it to 0.8, or rename val"
    ):
        load(config(corpus, 0.1))
    few = write(tmp_path / "few", train=LINE * 400, val=LINE)
    with pytest.raises(UserError, match=r"held_out_share=0.0026$"):
        load(config(few))
    assert sizes(load(config(few, 0.0026))) == (8401, 22)


def test_a_share_that_is_asked_for_is_held_out(tmp_path: Path) -> None:
    corpus = write(tmp_path, a=LINE * 500)
    for share in (0.005, 0.25, 0.5):
        train, held = sizes(load(config(corpus, share)))
        assert held / (train + held) == pytest.approx(share, abs=0.005)
    fingerprints = {load(config(corpus, share)).fingerprint for share in (None, 0.1, 0.25, 0.5)}
    assert len(fingerprints) == 3  # a tenth is what would be held out anyway
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}\n' * 40)
    for kind, rows in (("instructions", 1), ("preferences", 2)):
        assert len(load(config(f"{kind}:{tmp_path / 'a.jsonl'}", 0.25)).validation_T) == 10 * rows * 8
    for name in ("markov", "task:copy", "0.5*task:copy + 0.5*task:reverse"):
        with pytest.raises(UserError, match=r"data.held_out_share=0.2 means nothing to data.corpus=\S+: leave it out"):
            load(DataConfig(corpus=name, sequence_length=32, validation_sequences=1, held_out_share=0.2))
    with pytest.raises(UserError, match=r"data.held_out_share must lie in \(0, 1\), not 1"):
        config(corpus, 1)


def test_few_packed_conversations_are_no_share_by_name(tmp_path: Path) -> None:
    short, long = ('{"prompt": "a", "response": "%s"}\n' % ("b" * n) for n in (1, 25))
    (tmp_path / "a.jsonl").write_text(short * 18 + long * 2)
    packed = DataConfig(
        corpus=f"instructions:{tmp_path / 'a.jsonl'}", sequence_length=32, validation_sequences=1, packing=True
    )
    assert sizes(load(packed)) == (64, 64)


def test_parts_of_a_mixture_are_said_and_checked_one_by_one(tmp_path: Path) -> None:
    plain, named = write(tmp_path / "a", a=LINE * 100), write(tmp_path / "b", train=LINE * 40, val=LINE * 60)
    both = DataConfig(corpus=f"0.5*{plain} + 0.5*{named}", sequence_length=8, validation_sequences=2)
    with pytest.raises(UserError, match=r"data.corpus=text:\S+b holds out 0.6"):
        load(both)
    first, second = describe([DataConfig(**vars(both) | {"held_out_share": 0.2})])
    assert "1,681 tokens to train on, 421 held out, from a.txt" in first and "held out (60.0%): val.txt" in second


def test_configs_without_a_share_are_hashed_as_they_were(tmp_path: Path) -> None:
    content = to_dict(RunConfig())
    del content["data"]["held_out_share"]
    assert (
        content_hash(content) == config_hash(RunConfig()) != config_hash(RunConfig(data=DataConfig(held_out_share=0.1)))
    )


def shards(folder: Path, **files: np.ndarray) -> str:
    folder.mkdir(exist_ok=True)
    for name, tokens in files.items():
        (folder / f"{name.replace('__', '/')}.bin").parent.mkdir(exist_ok=True)
        (folder / f"{name.replace('__', '/')}.bin").write_bytes(tokens.astype("<u2").tobytes())
    return f"tokens:{folder}"


def test_the_last_tenth_of_unnamed_shards_is_held_out_across_files(tmp_path: Path) -> None:
    tokens = np.arange(1000)
    corpus = load(config(shards(tmp_path, carnival=tokens[:500], b=tokens[500:980], z=tokens[980:])))
    # By name: b, carnival, z.
    assert sizes(corpus) == (900, 100) and corpus.train_T[480:900].tolist() == list(range(420))
    assert corpus.validation_T[:].tolist() == [*range(420, 500), *range(980, 1000)]
    assert list(corpus.origin.held) == ["carnival.bin (tail)", "z.bin"]


def test_shards_in_folders_are_sorted_by_their_names(tmp_path: Path) -> None:
    tokens = np.arange(1000)
    corpus = load(
        config(
            shards(
                tmp_path, train__0=tokens[:700], train__1=tokens[700:800], val__0=tokens[800:900], test__0=tokens[900:]
            )
        )
    )
    assert corpus.train_T[:].tolist() == list(range(800)) and corpus.validation_T[:].tolist() == list(range(800, 900))
    (tmp_path / "val" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"val has a meta.json of its own: name it as a corpus, data.corpus=tokens:"):
        read_shards(str(tmp_path), Reading())


def test_splits_that_are_as_they_were_keep_their_fingerprints(tmp_path: Path) -> None:
    plays = {f"d{i}": LINE * (1 + 37 * i % 300) for i in range(40)}
    assert text_kinds()["text"](write(tmp_path / "many", **plays)[5:]).digest == "2ddd378787beed87"
    assert text_kinds()["text"](write(tmp_path / "one", a=LINE * 500)[5:]).digest == "88db6f9d6f6d7213"
    tokens = [(np.arange(5000) + i) % 300 for i in range(10)]
    kept = {
        "80934c0ae707e018": {f"s{i}": part for i, part in enumerate(tokens)},
        "91939074e54c30d8": {"a": tokens[0]},
        "78dfa44a5701abe0": {"train": tokens[0], "val": tokens[1][:500]},
    }
    for expected, files in kept.items():
        assert read_shards(shards(tmp_path / expected, **files)[7:], Reading()).fingerprint == f"tokens:{expected}"


def test_a_fingerprint_tells_which_part_was_held_out(tmp_path: Path) -> None:
    first, second = np.arange(100), np.arange(100, 120)
    one = load(config(shards(tmp_path / "one", a=first, b_val=second)))
    other = load(config(shards(tmp_path / "other", a_val=second, b=first)))
    third = load(config(shards(tmp_path / "third", a_val=first[:20], b=np.concatenate([first[20:], second]))))
    assert one.fingerprint == other.fingerprint != third.fingerprint
    assert one.train_T[:].tolist() == other.train_T[:].tolist()


def test_a_shard_is_cut_behind_an_end_token(tmp_path: Path) -> None:
    shards(tmp_path, a=np.where(np.arange(1000) % 55 == 54, 0, 5))
    assert len(read_shards(str(tmp_path), Reading()).train_T) == 900
    (tmp_path / "meta.json").write_text('{"vocab_size": 10, "eos_id": 0}')
    assert len(read_shards(str(tmp_path), Reading()).train_T) == 16 * 55  # the last end before the 900th token
    (tmp_path / "meta.json").write_text('{"vocab_size": 10, "eos_id": 7}')
    assert len(read_shards(str(tmp_path), Reading()).train_T) == 900


def test_a_megatron_shard_is_cut_behind_a_sequence(tmp_path: Path) -> None:
    lengths = np.array([300, 300, 270, 130], dtype="<i4")
    (tmp_path / "a.bin").write_bytes(np.arange(1000, dtype="<u2").tobytes())
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), 1) + lengths.tobytes()
    (tmp_path / "a.idx").write_bytes(index)
    assert len(read_shards(str(tmp_path), Reading()).train_T) == 870
