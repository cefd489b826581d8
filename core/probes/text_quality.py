"""Quality of decoded text, without the model that wrote it: pure functions of tokens.

An n-gram judge alone rewards text that repeats or copies: read it beside distinct n-grams, entropy and the longest copied
span. Shapes: L tokens of a sample, T training tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def distinct(samples: Sequence[np.ndarray], n: int = 4) -> float:
    """The share of all samples' n-grams that are different from each other (arXiv 1510.03055); 0 where there are none."""
    grams = [np.lib.stride_tricks.sliding_window_view(sample, n) for sample in samples if len(sample) >= n]
    if not grams:
        return 0.0
    together = np.concatenate(grams)
    return len(np.unique(together, axis=0)) / len(together)


def entropy(sample_L: np.ndarray) -> float:
    """The entropy of a sample's own token frequencies, in nats: low where a fluent judge is fooled by repetition."""
    counts = np.unique(sample_L, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) if len(counts) else 0.0


def longest_copied_span(sample_L: np.ndarray, train_T: np.ndarray) -> int:
    """Length in tokens of the longest span of a sample that occurs in the training text."""
    train = np.ascontiguousarray(train_T, dtype=np.uint32).tobytes()
    sample = np.ascontiguousarray(sample_L, dtype=np.uint32).tobytes()
    longest = 0
    for start in range(len(sample_L)):
        while start + longest < len(sample_L) and _holds(train, sample[4 * start : 4 * (start + longest + 1)]):
            longest += 1
    return longest


def _holds(train: bytes, span: bytes) -> bool:
    """True if the tokens of 4 bytes each of a span stand in the text in order."""
    place = train.find(span)
    while place >= 0 and place % 4:  # between two tokens
        place = train.find(span, place + 1)
    return place >= 0


@dataclass(frozen=True)
class NgramJudge:
    """An n-gram model with Witten-Bell smoothing (Witten and Bell 1991): what training text alone makes of a sample.

    grams: for n = 1 .. order, the different n-grams as sorted integers, and how often each occurs. contexts: their beginnings
    of n - 1 tokens, how often each occurs with a token after it, and how many different tokens that were.
    """

    vocabulary: int
    grams: tuple[tuple[np.ndarray, np.ndarray], ...]
    contexts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, train_T: np.ndarray, vocabulary: int, order: int = 4) -> "NgramJudge":
        """Count a text. Raises ValueError where n-grams of the order have no room in 64 bits."""
        if vocabulary**order > 2**63:
            raise ValueError(f"{order}-grams of {vocabulary} tokens have no room in 64 bits: use a lower order")
        grams, contexts = [], []
        for n in range(1, order + 1):
            codes, counts = np.unique(_codes(train_T, n, vocabulary), return_counts=True)
            before, first, kinds = np.unique(codes // vocabulary, return_index=True, return_counts=True)
            grams.append((codes, counts))
            contexts.append((before, np.add.reduceat(counts, first), kinds))
        return cls(vocabulary, tuple(grams), tuple(contexts))

    def cross_entropy(self, sample_L: np.ndarray) -> float:
        """Mean -log p of a sample's tokens given those before them, in nats; the first ones are given fewer."""
        probability_L = np.full(len(sample_L), 1 / self.vocabulary)
        for n, ((codes, counts), (before, totals, kinds)) in enumerate(zip(self.grams, self.contexts, strict=True), 1):
            seen = _codes(sample_L, n, self.vocabulary)
            count, total = _look_up(codes, counts, seen), _look_up(before, totals, seen // self.vocabulary)
            kind = _look_up(before, kinds, seen // self.vocabulary)
            known = total > 0
            later = probability_L[n - 1 :]
            smoothed = (count + kind * later) / np.where(known, total + kind, 1)
            probability_L[n - 1 :] = np.where(known, smoothed, later)
        return float(-np.log(probability_L).mean())


def _codes(tokens_L: np.ndarray, n: int, vocabulary: int) -> np.ndarray:
    """Each n-gram as one integer, the last token its lowest digit. Returns (L - n + 1,) int64."""
    if len(tokens_L) < n:
        return np.zeros(0, dtype=np.int64)
    code = np.zeros(len(tokens_L) - n + 1, dtype=np.int64)
    for place in range(n):
        code = code * vocabulary + tokens_L[place : place + len(code)].astype(np.int64)
    return code


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(float)
