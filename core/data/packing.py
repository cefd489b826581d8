"""Conversations laid out in sequences: one in each, or as many as there is room for.

Shapes: B sequences of L tokens with C conversations in all, M masked tokens.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.data.tokenizers import Vocabulary


class Rows(NamedTuple):
    """Sequences of one length: ids (R, L); which tokens are of responses, (R, L) bool; and which of a sequence's
    conversations each is of, from 1 on, 0 for filling, (R, L) int16."""

    tokens_RL: np.ndarray
    response_RL: np.ndarray
    segments_RL: np.ndarray


class Packed(NamedTuple):
    """Where the conversations of a batch are.

    segments_BL: int64, as Rows has them. conversation_M: int64, which of the C each masked token is of. row_C: int64, each
    one's sequence. length_C: tokens of its responses. denominator: the step's conversations for each of its micro-batches
    and devices: sums over it average to the mean over all conversations.
    """

    segments_BL: Tensor
    conversation_M: Tensor
    row_C: Tensor
    length_C: Tensor
    denominator: Tensor


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
    """Which items go into each bin of that room: best fit, the largest first (Johnson 1973). Bins are in order of their
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


def conversations(segments_BL: Tensor) -> Tensor:
    """How many conversations each sequence has. Returns (B,)."""
    return segments_BL.amax(1)


def locate(segments_BL: Tensor, response_BL: Tensor, index_M: Tensor, denominator: float) -> Packed:
    """Find the conversations of a batch. index_M: positions of the masked tokens in the flattened batch."""
    count_B = conversations(segments_BL)
    first_B = count_B.cumsum(0) - count_B
    conversation_BL = first_B[:, None] + segments_BL - 1
    length_C = torch.bincount(conversation_BL[response_BL], minlength=int(count_B.sum())).float()
    row_C = torch.arange(len(count_B)).repeat_interleave(count_B)
    masked_M = conversation_BL.flatten()[index_M]
    return Packed(segments_BL, masked_M, row_C, length_C, torch.tensor(denominator))
