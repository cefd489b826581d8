"""Batch of sequences, and the conversations of packed ones.

Shapes: B sequences of L tokens with C conversations in all, M masked tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from core.diffusion.masking import Masking


class Packed(NamedTuple):
    """Positions of the conversations in a batch.

    segments_BL: int64, as in core.data.kinds.responses.Rows. conversation_M: int64, which of the C each masked token is of.
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


class Batch(NamedTuple):
    """Clean tokens and how they are masked.

    tokens_BL: int64. index_M: positions of the masked tokens in the flattened (B L,) batch: found here, on the host, so that
    the device never has to say how many there are. router_timestep_B: the timestep that routers see. domain_B: which part of
    a mixture each sequence is of, in validation. packed: of packed sequences. block_length: of block diffusion at this step;
    None: the network's own, if any.
    """

    tokens_BL: Tensor
    masking: Masking
    index_M: Tensor
    router_timestep_B: Tensor
    domain_B: Tensor | None = None
    packed: Packed | None = None
    block_length: int | None = None

    @classmethod
    def of(
        cls,
        tokens_BL: Tensor,
        masking: Masking,
        router_timestep_B: Tensor | None = None,
        domain_B: Tensor | None = None,
        block_length: int | None = None,
    ) -> "Batch":
        router_timestep_B = masking.timestep_B if router_timestep_B is None else router_timestep_B
        index_M = masking.masked_BL.flatten().nonzero()[:, 0]
        return cls(tokens_BL, masking, index_M, router_timestep_B, domain_B, block_length=block_length)

    def with_conversations(
        self, segments_BL: Tensor, response_BL: Tensor, denominator: float, tokens: float | None = None
    ) -> "Batch":
        """The same of packed sequences. tokens: as in Packed; None for a batch of its own."""
        count_B = segments_BL.amax(1)
        first_B = count_B.cumsum(0) - count_B
        conversation_BL = first_B[:, None] + segments_BL - 1
        masked_M = conversation_BL.flatten()[self.index_M]
        row_C = torch.arange(len(count_B)).repeat_interleave(count_B)
        length_C = torch.bincount(conversation_BL[response_BL], minlength=int(count_B.sum())).float()
        real = int((segments_BL > 0).sum())
        real_BL = segments_BL > 0 if real < segments_BL.numel() else None  # found on the host: the device isn't asked
        divisors = torch.tensor(denominator), torch.tensor(float(real if tokens is None else tokens))
        return self._replace(packed=Packed(segments_BL, masked_M, row_C, length_C, *divisors, real_BL))

    @property
    def real_tokens(self) -> Tensor | None:
        """Divisor of sums over the tokens of packed sequences; None if there is no filling."""
        return None if self.packed is None else self.packed.tokens

    def mean(self, nelbo_B: Tensor) -> Tensor:
        """The mean over sequences, or over conversations: this micro-batch's part of the step's loss."""
        return nelbo_B.mean() if self.packed is None else nelbo_B.sum() / self.packed.denominator
