"""Load balance: the auxiliary losses of one layer's routing, and statistics of expert load (pure functions)."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Counted(NamedTuple):
    """Tokens of a batch that count, without filling, and the divisor of their mean.

    real_N: bool; None: all of this rank's. tokens: of several ranks or micro-batches the mean of how many there are, so
    that the mean of all their means is that of all tokens.
    """

    real_N: Tensor | None
    tokens: Tensor


def expert_counts(experts_NK: Tensor, num_experts: int, *, ragged: bool = False) -> Tensor:
    """Count the N K assignments by expert. Returns (E,) int64. ragged: entries of -1 are no expert."""
    flat = experts_NK.reshape(-1)
    if ragged:
        return expert_counts(flat.remainder(num_experts + 1), num_experts + 1)[:num_experts]
    # scatter_add, not bincount: bincount waits for the device to learn its output size.
    return torch.zeros(num_experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))


def counts_by_group(experts_NK: Tensor, num_experts: int, group_N: Tensor, groups: int) -> Tensor:
    """The assignments of each expert by the token's group, which is one of 0 .. groups - 1. Returns (groups, E) int64.

    Entries of -1 are no expert; tokens of a group beyond are left out.
    """
    place_NK = group_N[:, None] * (num_experts + 1) + experts_NK.remainder(num_experts + 1)  # -1 comes last
    counts = expert_counts(place_NK.clamp(max=groups * (num_experts + 1)), groups * (num_experts + 1) + 1)
    return counts[:-1].view(groups, num_experts + 1)[:, :num_experts]


def over_ranks(counts_E: Tensor) -> Tensor:
    """Counts summed over all ranks, so that a loss of them is the same under any split of the batch. Returns (E,)."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        counts_E = counts_E.clone()
        dist.all_reduce(counts_E)
    return counts_E


def load_balancing_loss(probs_NE: Tensor, counts_E: Tensor, of: Counted | None = None) -> Tensor:
    """E sum_i f_i P_i of one layer (Switch, arXiv 2101.03961, Eq. 4; LLaDA-MoE Eq. 4).

    probs_NE: (N, E) router probabilities; counts_E: (E,) assignments. f_i is expert i's share of the assignments (sums
    to 1 over experts, whatever k), P_i its mean probability: balance gives 1, collapse onto the same K experts E / K.
    The gradient flows through P only. of: which tokens count, None for all. Returns a scalar.
    """
    share_E = counts_E.to(probs_NE.dtype) / counts_E.sum()
    return probs_NE.shape[-1] * (share_E * _mean(probs_NE, of)).sum()


def router_z_loss(logits_NE: Tensor, of: Counted | None = None) -> Tensor:
    """Mean squared log-sum-exp of one layer's router logits (ST-MoE, arXiv 2202.08906, Eq. 5). Returns a scalar.

    of: which tokens count, None for all.
    """
    return _mean(logits_NE.logsumexp(-1).square(), of)


def _mean(values_N: Tensor, of: Counted | None) -> Tensor:
    """The mean over tokens, of (N, ...)."""
    if of is None:
        return values_N.mean(0)
    if of.real_N is not None:
        values_N = values_N.where(of.real_N.view(-1, *[1] * (values_N.ndim - 1)), 0.0)
    return values_N.sum(0) / of.tokens


def max_violation(counts_LE: Tensor) -> Tensor:
    """MaxVio of each layer: (max load - mean load) / mean load (arXiv 2408.15664, Eq. 4). Returns (layers,)."""
    load_LE = counts_LE.double()
    return load_LE.amax(-1) / load_LE.mean(-1) - 1


def utilisation_entropy(counts_LE: Tensor) -> Tensor:
    """Entropy of each layer's expert load over log E: 1 = all experts alike, 0 = one expert. Returns (layers,)."""
    share_LE = counts_LE.double() / counts_LE.sum(-1, keepdim=True)
    entropy = torch.special.entr(share_LE).sum(-1)
    return entropy / math.log(counts_LE.shape[-1]) if counts_LE.shape[-1] > 1 else torch.ones_like(entropy)


def dead_share(counts_LE: Tensor) -> Tensor:
    """Share of each layer's experts that got no token. Returns (layers,)."""
    return (counts_LE == 0).double().mean(-1)
