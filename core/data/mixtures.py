"""Data mixtures: several corpora of one vocabulary, each drawn from with a weight.

A mixture's name is WEIGHT*CORPUS + WEIGHT*CORPUS, as in 0.7*stdlib + 0.3*text:PATH. Weights count relative to their sum.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from core.data.corpus import Corpus, Part
from core.data.shards import Shards
from core.data.tokenizers import Vocabulary
from core.errors import UserError
from core.runtime.random_streams import numpy_stream

SEPARATOR = " + "
WEIGHTED = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*\*(.*)", re.S)
BLOCK = 4096  # rows over which the shares of the parts are those of the weights, to less than two rows


def parse(name: str) -> list[tuple[float, str]]:
    """Weights, which sum to 1, and names of a mixture's parts; nothing where the name is of one corpus.

    Raises UserError for a part without a weight, a weight of 0, a part that is named twice, and fewer than two parts.
    """
    if not WEIGHTED.fullmatch(name):
        return []
    parts: list[tuple[float, str]] = []
    for text in name.split(SEPARATOR):
        found = WEIGHTED.fullmatch(text)
        if not found or not found[2].strip():
            raise UserError(
                f"data.corpus={name}: '{text.strip()}' is no part of a mixture: write WEIGHT*CORPUS for each, with ' + ' "
                "between them (a path with ' + ' in it can't be part of one)"
            )
        if float(found[1]) == 0:
            raise UserError(
                f"data.corpus={name}: the weight of {found[2].strip()} must be positive; leave the part out"
            )
        parts.append((float(found[1]), found[2].strip()))
    names = [part for _, part in parts]
    if len(parts) < 2:
        raise UserError(
            f"data.corpus={name} is a mixture of one part: write data.corpus={names[0]}, or add ' + ' and more"
        )
    for part in names:
        if names.count(part) > 1:
            raise UserError(f"data.corpus={name} names {part} twice: add its weights up")
    total = sum(weight for weight, _ in parts)
    return [(weight / total, part) for weight, part in parts]


def kinds(name: str) -> set[str]:
    """The kinds of corpora that a name speaks of: of one, or of a mixture's parts."""
    return {part.partition(":")[0] for part in [part for _, part in parse(name)] or [name]}


def blend(name: str, weights: Sequence[float], names: Sequence[str], corpora: Sequence[Corpus]) -> Corpus:
    """The corpora as one, whose tokens are theirs one after the other: mapped shards stay mapped.

    Raises UserError for parts of unlike vocabularies, prompts and responses beside plain text, and generated sources.
    """
    pairs = {part: corpus.train_maskable_T is not None for part, corpus in zip(names, corpora, strict=True)}
    for part, corpus in zip(names, corpora, strict=True):
        if corpus.source is not None:
            raise UserError(
                f"data.corpus={name}: {part} is a source of known entropy, which no mixture has: leave it out"
            )
        if pairs[part] != pairs[names[0]]:
            raise UserError(
                f"data.corpus={name}: {names[0]} and {part} don't mix: one has prompts and responses, the other plain text"
            )
        if corpus.vocabulary != corpora[0].vocabulary:
            raise UserError(
                f"data.corpus={name}: the parts need one vocabulary, and {names[0]} has {_said(corpora[0].vocabulary)}, "
                f"{part} {_said(corpus.vocabulary)}: tokenise them alike (a meta.json beside token shards says theirs)"
            )
    known = [corpus.bytes_per_token for corpus in corpora if corpus.bytes_per_token is not None]
    digest = hashlib.sha256(
        "\n".join(
            f"{weight:.12g} {corpus.fingerprint}" for weight, corpus in zip(weights, corpora, strict=True)
        ).encode()
    )
    return replace(
        corpora[0],
        train_T=_joined([corpus.train_T for corpus in corpora]),
        validation_T=_joined([corpus.validation_T for corpus in corpora]),
        fingerprint=f"mix:{digest.hexdigest()[:16]}",
        bytes_per_token=sum(w * b for w, b in zip(weights, known, strict=True)) if len(known) == len(corpora) else None,
        parts=tuple(
            Part(part, weight, len(corpus.train_T), len(corpus.validation_T), corpus.origin)
            for part, weight, corpus in zip(names, weights, corpora, strict=True)
        ),
        train_maskable_T=_marks([corpus.train_maskable_T for corpus in corpora]),
        validation_maskable_T=_marks([corpus.validation_maskable_T for corpus in corpora]),
        train_segments_T=_marks([corpus.train_segments_T for corpus in corpora]),
        validation_segments_T=_marks([corpus.validation_segments_T for corpus in corpora]),
    )


def _joined(arrays: Sequence[np.ndarray | Shards]) -> Shards:
    return Shards([piece for array in arrays for piece in (array.parts if isinstance(array, Shards) else [array])])


def _marks(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Join marks that every part has, or none of them: blend refuses anything else."""
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found else None


def _said(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.size} ids with mask {vocabulary.mask} and eos {vocabulary.eos}"


class Draws:
    """Draw of the part, and of its row, for each row of training: a function of seed and row alone.

    Rows are stratified: of any block of 4096 each part has its share, to less than two rows, in an order of chance.
    """

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        self.seed, self.count, self.edges = seed, len(weights), np.cumsum(weights)[:-1]
        self._before = [np.zeros(self.count, dtype=np.int64)]  # rows of each part before each block
        self._block = lru_cache(maxsize=2)(self._draw)

    def __call__(self, row: int) -> tuple[int, int]:
        block, place = divmod(row, BLOCK)
        while len(self._before) <= block:
            drawn, _ = self._draw(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=self.count))
        drawn, rank = self._block(block)
        part = int(drawn[place])
        return part, int(self._before[block][part] + rank[place])

    def _draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Each row's part, and how many of that part are before it in the block."""
        rng = numpy_stream(self.seed, "mixture", block)
        drawn = np.searchsorted(self.edges, (rng.permutation(BLOCK) + rng.random(BLOCK)) / BLOCK, side="right")
        rank = np.empty(BLOCK, dtype=np.int64)
        for part in range(self.count):
            rank[drawn == part] = np.arange((drawn == part).sum())
        return drawn, rank


def shares(weights: Sequence[float], count: int) -> list[int]:
    """Split `count` over the parts: in proportion, by largest remainder, and one at least."""
    exact = [weight * count for weight in weights]
    given = [max(1, int(share)) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
    for index in order[: max(0, count - sum(given))]:
        given[index] += 1
    while sum(given) > count:  # small parts were given more than their share
        given[given.index(max(given))] -= 1
    return given
