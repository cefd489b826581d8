"""Prediction of a batch's masked tokens by a network.

Shapes: B sequences, C conversations, M masked tokens, L positions.
"""

from typing import NamedTuple

from torch import Tensor

from core.diffusion.batch import Batch
from core.diffusion.losses import nelbo_per_token, token_cross_entropy
from core.model.transformer import Denoiser, LayerRouting


class Prediction(NamedTuple):
    """A network's answer to a batch: each sequence's NELBO (B,), in nats per token, or each conversation's (C,) where they
    are packed; each sparse layer's routing; the sum of each layer's output (layers + 1,), the embedding's first, which is
    finite where the output is; and the cross-entropy of each predicted token (M,), in the order of the batch's index_M."""

    nelbo_B: Tensor
    routings: list[LayerRouting]
    sums_L: Tensor
    cross_entropy_M: Tensor


def predict(denoiser: Denoiser, input_BL: Tensor, batch: Batch) -> Prediction:
    """Predict a batch's masked tokens, and only those, from what the network sees of it.

    With blocks, each is predicted given the clean tokens of those before it.
    """
    (tokens_BL, masking, index_M, router_timestep_B), packed = batch[:4], batch.packed
    clean_BL = None if denoiser.config.block_length is None else tokens_BL
    hidden = denoiser.hidden(
        input_BL,
        router_timestep_B,
        masking.ratio_B,
        segments_BL=None if packed is None else packed.segments_BL,
        clean_BL=clean_BL,
        block_length=batch.block_length,
        real_BL=None if packed is None else packed.real_BL,
    )
    length = tokens_BL.shape[1]
    from_M = denoiser.source(index_M, length)
    logits_MV = denoiser.logits(hidden.states_BLD.flatten(0, 1).index_select(0, from_M))
    cross_entropy_M = token_cross_entropy(logits_MV, tokens_BL.flatten().index_select(0, index_M))
    sequence_M = index_M.div(length, rounding_mode="floor")
    within_M, length_X = (sequence_M, masking.length_B) if packed is None else (packed.conversation_M, packed.length_C)
    nelbo_X = nelbo_per_token(cross_entropy_M, within_M, masking.weight_B[sequence_M], length_X)
    return Prediction(nelbo_X, hidden.routings, hidden.sums_L, cross_entropy_M)
