"""What is minimised: pure functions of logits, targets and masks, in nats."""

import torch.nn.functional as F
from torch import Tensor


def token_cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """-log p(target) of each of M tokens, in nats, computed in fp32. Returns (M,)."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="none")


def nelbo_per_token(cross_entropy_M: Tensor, sequence_M: Tensor, weight_B: Tensor, length_B: Tensor) -> Tensor:
    """Each sequence's bound on the negative log-likelihood, per token: weight * sum over masked of CE / length.

    With weight 1 / p and length L it is LLaDA-MoE Eq. 2, with the length of the response Eq. 5; with weight 1 and every
    token predicted from those before it, the autoregressive negative log-likelihood.
    cross_entropy_M: (M,) nats; sequence_M: (M,) int64, the sequence of each; weight_B, length_B: (B,).
    Returns (B,) nats per token; their mean is the loss of the batch.
    """
    weighted_M = weight_B[sequence_M] * cross_entropy_M
    return cross_entropy_M.new_zeros(len(weight_B)).index_add(0, sequence_M, weighted_M) / length_B


def total_loss(nelbo: Tensor, load_balancing: Tensor, z_loss: Tensor, *, weights: tuple[float, float]) -> Tensor:
    """NELBO + w_LB L_LB + w_Z L_Z (LLaDA-MoE Eq. 4); the sum is what trains, the NELBO alone is what is reported."""
    return nelbo + weights[0] * load_balancing + weights[1] * z_loss
