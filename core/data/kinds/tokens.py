"""Corpora of token shards, which another program tokenised."""

from core.data.corpus import Corpus, Reading, corpus
from core.data.shards import read_shards


@corpus("tokens", tokenized=True)
def _tokens(argument: str, reading: Reading) -> Corpus:
    """tokens:PATH, a file or folder of shards; see core.data.shards for their formats."""
    shards, origin = read_shards(argument, reading.held_out_share)
    return Corpus(
        shards.train,
        shards.validation,
        shards.fingerprint,
        shards.vocabulary,
        bytes_per_token=shards.bytes_per_token,
        origin=origin,
    )
