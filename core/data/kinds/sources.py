"""Corpora drawn from sources of known entropy."""

import hashlib

import numpy as np

from core.data.corpus import Corpus, Reading, corpus
from core.data.hierarchy import TreeSource
from core.data.synthetic import DOMAINS, HiddenMarkovSource, MarkovSource, Source, mixture
from core.data.tokenizers import load_tokenizer
from core.runtime.random_streams import numpy_stream

SYNTHETIC_TOKENS = 1_000_000
# A source's name seeds its stream: one language for all seeds, because a seed varies the run and not the question.


@corpus("markov", tokenized=True)
def _markov(argument: str, reading: Reading) -> Corpus:
    length = reading.sequence_length
    rng = numpy_stream(0, "corpus", "markov")
    source = MarkovSource.random(rng)
    return _sampled("markov", source, *_count(length), length, rng, entropy=source.entropy_per_token(length))


@corpus("tree", tokenized=True)
def _tree(argument: str, reading: Reading) -> Corpus:
    length = reading.sequence_length
    rng = numpy_stream(0, "corpus", "tree", length)
    source = TreeSource.random(rng, length)
    return _sampled("tree", source, *_count(length), length, rng, entropy=source.entropy_per_token(length))


@corpus("hmm", tokenized=True)
def _hmm(argument: str, reading: Reading) -> Corpus:
    length = reading.sequence_length
    rng = numpy_stream(0, "corpus", "hmm")
    return _sampled("hmm", HiddenMarkovSource.random(rng), *_count(length), length, rng)


@corpus("mixture", tokenized=True)
def _mixture(argument: str, reading: Reading) -> Corpus:
    length = reading.sequence_length
    rng = numpy_stream(0, "corpus", "mixture")
    chains = [MarkovSource.random(rng) for _ in range(DOMAINS)]
    source = mixture(chains)
    train, held = _count(length)
    tokens_NL, states_NL = source.sample_with_states(train + held, length, rng)
    domains_N = (states_NL[:, 0] // chains[0].vocabulary_size).astype(np.int64)
    return _packed("mixture", source, tokens_NL, train, domains_N=domains_N)


def _sampled(
    name: str,
    source: Source,
    train: int,
    held: int,
    length: int,
    rng: np.random.Generator,
    entropy: float | None = None,
) -> Corpus:
    return _packed(name, source, source.sample(train + held, length, rng), train, entropy=entropy)


def _packed(
    name: str,
    source: Source,
    tokens_NL: np.ndarray,
    train: int,
    *,
    entropy: float | None = None,
    domains_N: np.ndarray | None = None,
) -> Corpus:
    digest = hashlib.sha256(tokens_NL.tobytes() + str(tokens_NL.shape).encode()).hexdigest()[:16]
    if entropy is None:
        # No closed form: the mean of exact log-probabilities over all sequences, a standard error below 0.002 nats.
        entropy = -float(source.log_probability(tokens_NL).mean()) / tokens_NL.shape[1]
    return Corpus(
        train_T=tokens_NL[:train].reshape(-1),
        validation_T=tokens_NL[train:].reshape(-1),
        fingerprint=f"{name}:{digest}",
        vocabulary=load_tokenizer("bytes").vocabulary,
        aligned=True,
        source=source,
        entropy=entropy,
        train_domain_S=None if domains_N is None else domains_N[:train],
        validation_domain_S=None if domains_N is None else domains_N[train:],
    )


def _count(length: int) -> tuple[int, int]:
    sequences = SYNTHETIC_TOKENS // length
    return sequences, sequences // 10
