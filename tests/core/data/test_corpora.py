import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora, tokens
from core.data.corpus import Corpus
from core.data.synthetic import MarkovSource, stationary_distribution
from core.errors import UserError


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
    parts = [tokens.decode(part).split("\n") for part in (corpus.train_T, corpus.validation_T)]
    seen = {line for part in parts for line in part if line}
    assert seen == {(f"file {i} " * (20 + i)) for i in range(30)}
    assert set(parts[0]) & set(parts[1]) == {""}
    assert 0.05 < len(corpus.validation_T) / (len(corpus.train_T) + len(corpus.validation_T)) < 0.25


def test_a_new_file_moves_no_other_between_the_parts(folder) -> None:
    before = {line for line in tokens.decode(load(folder).validation_T).split("\n") if line}
    (folder / "tiny.txt").write_text("x")
    after = {line for line in tokens.decode(load(folder).validation_T).split("\n") if line}
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


def test_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="has no text: 0 documents"):
        corpora.load(DataConfig(corpus=f"text:{tmp_path}"))


def test_the_standard_library_is_real_text() -> None:
    corpus = corpora.load(DataConfig())
    assert len(corpus.train_T) > 2_000_000
    assert corpus.fingerprint.startswith("stdlib:")
    assert "def " in tokens.decode(corpus.validation_T[:20000])
    assert int(max(corpus.train_T.max(), corpus.validation_T.max())) == tokens.EOS_ID


def test_bytes_round_trip() -> None:
    text = "naïve — ∑ \0"
    joined = tokens.join([text.encode(), b"b"])
    assert tokens.decode(joined) == f"{text}\nb\n"


def test_markov_statistics() -> None:
    source = MarkovSource.random(np.random.default_rng(1), states=5)
    np.testing.assert_allclose(source.stationary_S @ source.transitions_SS, source.stationary_S, atol=1e-12)
    x_NL = source.sample(4000, 30, np.random.default_rng(2)).astype(int)
    assert np.bincount(x_NL[:, 0], minlength=5) / 4000 == pytest.approx(source.stationary_S, abs=0.03)
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (x_NL[:, :-1].ravel(), x_NL[:, 1:].ravel()), 1)
    np.testing.assert_allclose(pairs / pairs.sum(1, keepdims=True), source.transitions_SS, atol=0.03)


def test_markov_entropy_of_known_chains() -> None:
    fair = np.full((4, 4), 0.25)
    assert MarkovSource(fair, stationary_distribution(fair)).entropy_per_token(7) == pytest.approx(np.log(4))
    cycle = np.roll(np.eye(3), 1, axis=1)
    assert MarkovSource(cycle, stationary_distribution(cycle)).entropy_per_token(10) == pytest.approx(np.log(3) / 10)
