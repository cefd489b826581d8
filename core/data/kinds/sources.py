"""Corpora drawn from sources of known entropy."""

import hashlib

import numpy as np

from core.data.corpus import Corpus, Reading, corpus
from core.data.synthetic import DOMAINS, HiddenMarkovSource, MarkovSource, Source, TreeSource, mixture
from core.data.tokenizers import load_tokenizer
from core.runtime.random_streams import numpy_stream

SYNTHETIC_TOKENS = 1_000_000
# A source's name seeds its stream: one language for all seeds, because a seed varies the run and not the question.


@corpus("markov", tokenized=True)
def _markov(argument: str, reading: Reading) -> Corpus:
    rng = numpy_stream(0, "corpus", "markov")
    source = MarkovSource.random(rng)
    return _sampled("markov", source, reading, rng, source.entropy_per_token(reading.sequence_length))


@corpus("tree", tokenized=True)
def _tree(argument: str, reading: Reading) -> Corpus:
    rng = numpy_stream(0, "corpus", "tree", reading.sequence_length)
    source = TreeSource.random(rng, reading.sequence_length)
    return _sampled("tree", source, reading, rng, source.entropy_per_token(reading.sequence_length))


@corpus("hmm", tokenized=True)
def _hmm(argument: str, reading: Reading) -> Corpus:
    rng = numpy_stream(0, "corpus", "hmm")
    return _sampled("hmm", HiddenMarkovSource.random(rng), reading, rng)


@corpus("mixture", tokenized=True)
def _mixture(argument: str, reading: Reading) -> Corpus:
    rng = numpy_stream(0, "corpus", "mixture")
    source = mixture([MarkovSource.random(rng) for _ in range(DOMAINS)])
    return _sampled("mixture", source, reading, rng)


def _sampled(
    name: str, source: Source, reading: Reading, rng: np.random.Generator, entropy: float | None = None
) -> Corpus:
    length = reading.sequence_length
    train = SYNTHETIC_TOKENS // length
    tokens_NL = source.sample(train + train // 10, length, rng)
    digest = hashlib.sha256(tokens_NL.tobytes() + str(tokens_NL.shape).encode()).hexdigest()[:16]
    if entropy is None:
        # No closed form: the mean of exact log-probabilities over all sequences, a standard error below 0.002 nats.
        entropy = -float(source.log_probability(tokens_NL).mean()) / length
    return Corpus(
        train_T=tokens_NL[:train].reshape(-1),
        validation_T=tokens_NL[train:].reshape(-1),
        fingerprint=f"{name}:{digest}",
        vocabulary=load_tokenizer("bytes").vocabulary,
        aligned=True,
        source=source,
        entropy=entropy,
    )
