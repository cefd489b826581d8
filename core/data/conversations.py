"""The conversations of a batch of packed sequences.

Shapes: B sequences of L tokens with C conversations in all, M masked tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Positions of the conversations in a batch.

    segments_BL: int64, as core.data.packing.Rows has them. conversation_M: int64, which of the C each masked token is of.
    row_C: int64, each one's sequence. length_C: tokens of its responses. denominator: the step's conversations for each of
    its micro-batches and devices: sums over it average to the mean over all conversations. tokens: the same of all their
    tokens. real_BL: bool, False for filling; None: there is none.
    """

    segments_BL: Tensor
    conversation_M: Tensor
    row_C: Tensor
    length_C: Tensor
    denominator: Tensor
    tokens: Tensor
    real_BL: Tensor | None


def conversations(segments_BL: Tensor) -> Tensor:
    """Number of conversations per sequence. Returns (B,)."""
    return segments_BL.amax(1)


def real_tokens(segments_BL: Tensor) -> int:
    """Number of tokens that belong to a conversation."""
    return int((segments_BL > 0).sum())


def locate(
    segments_BL: Tensor, response_BL: Tensor, index_M: Tensor, denominator: float, tokens: float | None = None
) -> Packed:
    """Find the conversations of a batch. index_M: positions of the masked tokens in the flattened batch; tokens: as in
    Packed, None for a batch of its own."""
    count_B = conversations(segments_BL)
    first_B = count_B.cumsum(0) - count_B
    conversation_BL = first_B[:, None] + segments_BL - 1
    length_C = torch.bincount(conversation_BL[response_BL], minlength=int(count_B.sum())).float()
    row_C = torch.arange(len(count_B)).repeat_interleave(count_B)
    masked_M = conversation_BL.flatten()[index_M]
    real = real_tokens(segments_BL)
    real_BL = segments_BL > 0 if real < segments_BL.numel() else None  # found on the host: the device isn't asked
    divisors = torch.tensor(denominator), torch.tensor(float(real if tokens is None else tokens))
    return Packed(segments_BL, masked_M, row_C, length_C, *divisors, real_BL)
