"""Conversations laid out in sequences: one in each, or as many as there is room for.

Shapes: R sequences of L tokens.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.data.tokenizers import Vocabulary


class Rows(NamedTuple):
    """Sequences of one length: ids (R, L); which tokens are of responses, (R, L) bool; and which of a sequence's
    conversations each is of, from 1 on, 0 for filling, (R, L) int16."""

    tokens_RL: np.ndarray
    response_RL: np.ndarray
    segments_RL: np.ndarray


def lay_out(
    ids: Sequence[np.ndarray], response: Sequence[np.ndarray], length: int, vocabulary: Vocabulary, *, packed: bool
) -> Rows:
    """Each conversation's ids and responses, closed by one eos that counts as response, in sequences filled up with eos.

    Where they aren't packed the filling counts as response too, so that a model learns where to end (LLaDA, arXiv
    2502.09992, App. B.1); where they are it is nobody's.
    """
    sizes = [len(one) + 1 for one in ids]
    rows = fit(sizes, length) if packed else [[index] for index in range(len(ids))]
    tokens_RL = np.full((len(rows), length), vocabulary.eos, dtype=vocabulary.dtype)
    response_RL = np.full((len(rows), length), not packed)
    segments_RL = np.zeros((len(rows), length), dtype=np.int16)
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, start=1):
            end = start + sizes[index]
            tokens_RL[row, start : end - 1], response_RL[row, start : end - 1] = ids[index], response[index]
            response_RL[row, end - 1] = True
            segments_RL[row, start:end] = segment
            start = end
    return Rows(tokens_RL, response_RL, segments_RL)


def fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Pack items into bins: best fit, the largest first (Johnson 1973). Bins are in order of their
    first item, and items in their own order within."""
    spaces: list[tuple[int, int]] = []  # (what is left, bin), in order
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(spaces, (sizes[index], -1))
        left, chosen = spaces.pop(place) if place < len(spaces) else (room, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(index)
        bisect.insort(spaces, (left - sizes[index], chosen))
    return sorted(map(sorted, bins))
