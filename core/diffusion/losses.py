"""Losses: pure functions of logits, targets and masks, in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """-log p(target) of each of M tokens, in nats, computed in fp32. Returns (M,)."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="none")


def nelbo_per_token(cross_entropy_M: Tensor, sequence_M: Tensor, weight_M: Tensor, length_B: Tensor) -> Tensor:
    """Each sequence's bound on the negative log-likelihood, per token: sum over masked of weight * CE / length.

    With weight 1 / p and length L it is LLaDA-MoE Eq. 2, with the length of the response Eq. 5; with weight 1 and every
    token predicted from those before it, the autoregressive negative log-likelihood. With `context_weights` it is no bound.
    cross_entropy_M: (M,) nats; sequence_M: (M,) int64, the sequence of each; length_B: (B,).
    Returns (B,) nats per token; their mean is the loss of the batch.
    """
    return cross_entropy_M.new_zeros(len(length_B)).index_add(0, sequence_M, weight_M * cross_entropy_M) / length_B


def context_weights(masked_BL: Tensor, p: float) -> Tensor:
    """Weight of each masked token by the visible tokens around it, instead of 1 / p. Returns (B, L), 0 where visible.

    w(n) = 1/2 sum over visible i of Geo(p, |n - i| - 1), with Geo(p, k) = p (1 - p)^k: near 1 between visible tokens only, 0
    where all are masked (CART: Dream, arXiv 2508.15487). The loss is then no bound.
    """
    length = masked_BL.shape[1]
    place_L = torch.arange(length, device=masked_BL.device)
    distance_LL = (place_L[:, None] - place_L).abs()
    kernel_LL = (p / 2 * (1 - p) ** (distance_LL - 1).float()).masked_fill(distance_LL == 0, 0.0)
    return ((~masked_BL).float() @ kernel_LL).masked_fill(~masked_BL, 0.0)


def preference_margins(nats_P2: Tensor, reference_P2: Tensor, beta: float) -> Tensor:
    """Preference margin of a model over its reference: beta times the difference of implicit
    rewards, B(chosen) - B_ref(chosen) - (B(rejected) - B_ref(rejected)), with B minus the NELBO. Returns (P,).

    nats_P2, reference_P2: NELBO of chosen and rejected responses, in nats a response, under the same timesteps and masks,
    so that what both find hard in a mask cancels (VRPO: LLaDA 1.5, arXiv 2505.19223, Eq. 5 and Sec. 3.3).
    """
    reward_P2 = reference_P2 - nats_P2
    return beta * (reward_P2[:, 0] - reward_P2[:, 1])


def preference_loss(margins_P: Tensor) -> Tensor:
    """-log sigmoid of the margins, their mean (DPO, arXiv 2305.18290, Eq. 7, on bounds)."""
    return F.softplus(-margins_P).mean()


def total_loss(nelbo: Tensor, load_balancing: Tensor, z_loss: Tensor, *, weights: tuple[float, float]) -> Tensor:
    """NELBO + w_LB L_LB + w_Z L_Z (LLaDA-MoE Eq. 4); the sum is what trains, the NELBO alone is what is reported."""
    return nelbo + weights[0] * load_balancing + weights[1] * z_loss
