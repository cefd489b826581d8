"""What is minimised: pure functions of logits, targets and masks, in nats."""

import torch.nn.functional as F
from torch import Tensor


def token_cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """-log p(target) of each of M tokens, in nats, computed in fp32. Returns (M,)."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="none")


def masked_diffusion_loss(cross_entropy_M: Tensor, weight_B: Tensor, masked_BL: Tensor) -> Tensor:
    """Each sequence's masked-diffusion NELBO per token (LLaDA-MoE Eq. 2): sum over masked of CE / p, over L.

    cross_entropy_M: (M,) nats of the masked tokens, in the order of `masked_BL`; weight_B: (B,) 1 / p of each
    sequence; masked_BL: (B, L) bool with M True. Returns (B,) nats per token; their mean is the loss of the batch.
    """
    sequence_M = masked_BL.nonzero(as_tuple=True)[0]
    weighted_M = weight_B[sequence_M] * cross_entropy_M
    return cross_entropy_M.new_zeros(len(weight_B)).index_add(0, sequence_M, weighted_M) / masked_BL.shape[1]


def total_loss(nelbo: Tensor, load_balancing: Tensor, z_loss: Tensor, *, weights: tuple[float, float]) -> Tensor:
    """NELBO + w_LB L_LB + w_Z L_Z (LLaDA-MoE Eq. 4); the sum is what trains, the NELBO alone is what is reported."""
    return nelbo + weights[0] * load_balancing + weights[1] * z_loss
