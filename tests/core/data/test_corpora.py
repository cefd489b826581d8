import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora
from core.data.corpus import Corpus
from core.data.synthetic import MarkovSource
from core.data.tokenizers import ByteTokenizer
from core.errors import UserError

BYTES = ByteTokenizer()


@pytest.fixture
def folder(tmp_path):
    for i in range(30):
        (tmp_path / f"f{i:02d}.txt").write_text(f"file {i} " * (20 + i))
    return tmp_path


def load(folder) -> Corpus:
    corpora._load.cache_clear()
    return corpora.load(DataConfig(corpus=f"text:{folder}", sequence_length=16, validation_sequences=4))


def test_files_are_split_whole_and_none_is_lost(folder) -> None:
    corpus = load(folder)
    parts = [BYTES.decode(part).split("\n") for part in (corpus.train_T, corpus.validation_T)]
    seen = {line for part in parts for line in part if line}
    assert seen == {(f"file {i} " * (20 + i)) for i in range(30)}
    assert set(parts[0]) & set(parts[1]) == {""}
    assert 0.05 < len(corpus.validation_T) / (len(corpus.train_T) + len(corpus.validation_T)) < 0.25


def test_a_new_file_moves_no_other_between_the_parts(folder) -> None:
    before = {line for line in BYTES.decode(load(folder).validation_T).split("\n") if line}
    (folder / "tiny.txt").write_text("x")
    after = {line for line in BYTES.decode(load(folder).validation_T).split("\n") if line}
    assert before <= after | {"x"}


def test_the_fingerprint_follows_the_content(folder) -> None:
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    (folder / "f00.txt").write_text("changed")
    assert load(folder).fingerprint != first


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"corpus": "wiki"}, "data.corpus='wiki' is unknown"),
        ({"corpus": "text:/nowhere/at/all"}, "is not a folder"),
        ({"corpus": "text:"}, "is not a folder"),
        ({"corpus": "markov", "validation_sequences": 10**6}, "data.validation_sequences"),
        ({"corpus": "markov", "sequence_length": 60_000}, "too few for data.sequence_length"),
    ],
)
def test_bad_corpora_are_refused(config: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        corpora.load(DataConfig(**config))


def test_the_standard_library_is_real_text() -> None:
    corpus = corpora.load(DataConfig())
    assert len(corpus.train_T) > 2_000_000
    assert corpus.fingerprint.startswith("stdlib:")
    assert "def " in BYTES.decode(corpus.validation_T[:20000])
    assert int(max(corpus.train_T.max(), corpus.validation_T.max())) == BYTES.vocabulary.eos


def test_bytes_round_trip() -> None:
    text = "naïve — ∑ \0"
    joined = BYTES.join({"a": text.encode(), "b": b"b"})
    assert BYTES.decode(joined) == f"{text}\nb\n"


def test_markov_entropy_of_known_chains() -> None:
    fair = np.full((4, 4), 0.25)
    assert MarkovSource.of(fair).entropy_per_token(7) == pytest.approx(np.log(4))
    cycle = np.roll(np.eye(3), 1, axis=1)
    assert MarkovSource.of(cycle).entropy_per_token(10) == pytest.approx(np.log(3) / 10)
