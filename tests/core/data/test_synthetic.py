"""Exact sources against enumeration: probabilities, posteriors, and the identity that makes their entropy a floor."""

import itertools
import math

import numpy as np
import pytest

from core.config.data import DataConfig
from core.data import corpora
from core.data.synthetic import HiddenMarkovSource, MarkovSource, Source, TreeSource, mixture, posterior_nelbo
from core.errors import UserError


def small(kind: str, length: int) -> Source:
    rng = np.random.default_rng(3)
    if kind == "markov":
        return MarkovSource.random(rng, states=3)
    if kind == "hmm":
        return HiddenMarkovSource.random(rng, hidden=4, vocabulary=3)
    if kind == "mixture":
        return mixture([MarkovSource.random(rng, states=3) for _ in range(2)])
    return TreeSource.random(rng, length, symbols=3, rules=2)


def sequences(source: Source, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(source.vocabulary_size), repeat=length)))


KINDS = [("markov", 5), ("hmm", 5), ("mixture", 5), ("tree", 4)]


@pytest.mark.parametrize(("kind", "length"), KINDS)
def test_probabilities_sum_to_one_and_are_what_is_sampled(kind: str, length: int) -> None:
    source = small(kind, length)
    everything = sequences(source, length)
    probability = np.exp(source.log_probability(everything))
    assert probability.sum() == pytest.approx(1, abs=1e-9)
    drawn = source.sample(40_000, length, np.random.default_rng(0))
    index = (drawn.astype(int) * source.vocabulary_size ** np.arange(length - 1, -1, -1)).sum(1)
    observed = np.bincount(index, minlength=len(everything)) / len(drawn)
    assert np.abs(observed - probability).max() < 5 * math.sqrt(0.25 / len(drawn))
    assert np.abs(observed - probability).sum() < 0.12


@pytest.mark.parametrize(("kind", "length"), KINDS)
def test_posteriors_equal_enumeration(kind: str, length: int) -> None:
    source = small(kind, length)
    everything = sequences(source, length)
    probability = np.exp(source.log_probability(everything))
    rng = np.random.default_rng(1)
    tokens_NL = source.sample(12, length, rng).astype(int)
    masked_NL = rng.random((12, length)) < 0.6
    found = source.posterior(tokens_NL, masked_NL)
    for tokens_L, masked_L, posterior_LV in zip(tokens_NL, masked_NL, found, strict=True):
        agrees = (everything == tokens_L)[:, ~masked_L].all(1)
        for position in np.flatnonzero(masked_L):
            expected = [
                probability[agrees & (everything[:, position] == v)].sum() for v in range(source.vocabulary_size)
            ]
            np.testing.assert_allclose(posterior_LV[position], np.array(expected) / sum(expected), atol=1e-9)


@pytest.mark.parametrize(("kind", "length"), [("markov", 6), ("hmm", 6), ("mixture", 6), ("tree", 4)])
def test_the_nelbo_of_the_exact_posterior_is_the_entropy(kind: str, length: int) -> None:
    """Every sequence, every mask of every count, enumerated."""
    source = small(kind, length)
    everything = sequences(source, length)
    probability = np.exp(source.log_probability(everything))
    everything, probability = everything[probability > 0], probability[probability > 0]
    nelbo = 0.0
    for count in range(1, length + 1):
        for hidden in itertools.combinations(range(length), count):
            masked_NL = np.zeros_like(everything, dtype=bool)
            masked_NL[:, list(hidden)] = True
            score_N = posterior_nelbo(source, everything, masked_NL)
            nelbo += (probability * score_N).sum() / math.comb(length, count) / length
    entropy = -(probability * np.log(probability)).sum() / length
    assert nelbo == pytest.approx(entropy, rel=1e-9)
    if hasattr(source, "entropy_per_token"):
        assert source.entropy_per_token(length) == pytest.approx(entropy, rel=1e-9)


@pytest.mark.parametrize("kind", ["markov", "hmm", "mixture", "tree"])
def test_a_corpus_knows_its_floor(kind: str) -> None:
    corpus = corpora.load(DataConfig(corpus=kind, sequence_length=32))
    rows_NL = np.asarray(corpus.validation_T[: 32 * 2000]).reshape(-1, 32)
    surprise_N = -corpus.source.log_probability(rows_NL) / 32
    assert surprise_N.mean() == pytest.approx(corpus.entropy, abs=4 * surprise_N.std() / 2000**0.5 + 1e-9)
    assert 0.5 < corpus.entropy < math.log(16)
    assert corpus.fingerprint.startswith(f"{kind}:") and int(np.max(corpus.train_T[:10_000])) < 16


def test_the_same_masks_leave_less_noise_in_the_excess() -> None:
    corpus = corpora.load(DataConfig(corpus="markov", sequence_length=32))
    rows_NL = np.asarray(corpus.validation_T[: 32 * 400]).reshape(-1, 32)
    masked_NL = np.random.default_rng(0).random(rows_NL.shape) < 0.5
    masked_NL[:, 0] = True
    exact_N = posterior_nelbo(corpus.source, rows_NL, masked_NL)
    blurred = 0.9 * corpus.source.posterior(rows_NL, masked_NL) + 0.1 / 16  # a slightly worse denoiser
    truth = np.take_along_axis(blurred, rows_NL.astype(int)[..., None], 2)[..., 0]
    model_N = (np.where(masked_NL, -np.log(truth), 0).sum(1)) / masked_NL.sum(1)
    assert (model_N - exact_N).var() < 0.1 * model_N.var()


def test_each_sequence_of_a_mixture_is_of_one_chain() -> None:
    corpus = corpora.load(DataConfig(corpus="mixture", sequence_length=64))
    rows_NL = np.asarray(corpus.validation_T).reshape(-1, 64).astype(int)
    blocks = [slice(16 * index, 16 * index + 16) for index in range(4)]
    chains = [MarkovSource.of(corpus.source.transitions_SS[block, block]) for block in blocks]
    domains = np.argmax([chain.log_probability(rows_NL) for chain in chains], axis=0)
    assert np.bincount(domains) / len(domains) == pytest.approx([0.25] * 4, abs=0.05)
    pairs = np.zeros((4, 16, 16))
    np.add.at(pairs, (domains.repeat(63), rows_NL[:, :-1].ravel(), rows_NL[:, 1:].ravel()), 1)
    for index, chain in enumerate(chains):
        expected = chain.transitions_SS
        seen = pairs[index].sum(1) > 2000
        found = pairs[index][seen] / pairs[index][seen].sum(1, keepdims=True)
        np.testing.assert_allclose(found, expected[seen], atol=0.04)


def test_trees_have_lengths_that_are_powers_of_two() -> None:
    with pytest.raises(UserError, match="data.sequence_length=48 must be a power of two, such as 32 or 64"):
        corpora.load(DataConfig(corpus="tree", sequence_length=48))
