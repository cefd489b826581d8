"""The forward process: timesteps, and which tokens they mask (LLaDA-MoE, arXiv 2509.24389, Sec. 2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from core.config import ObjectiveConfig


class Masking(NamedTuple):
    """How a batch is masked.

    masked_BL: bool, True where the token is hidden. timestep_B: t in (0, 1]. weight_B: what a masked token's
    cross-entropy counts for, so that sum(weight * CE over masked) / (B L) is the NELBO per token.
    """

    masked_BL: Tensor
    timestep_B: Tensor
    weight_B: Tensor


def sample_timesteps(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Timesteps t in (0, 1], marginally uniform.

    "uniform" draws each on its own; "stratified" draws one in each of `count` equal parts of (0, 1], in random order,
    which leaves every expectation as it is and lowers the variance of the loss. Returns (count,).
    """
    t = 1 - torch.rand(count, generator=generator)  # (0, 1]: t = 0 masks nothing
    if kind == "stratified":
        t = (torch.arange(count) + t) / count
        t = t[torch.randperm(count, generator=generator)]
    return t


def mask_tokens(batch: int, length: int, objective: ObjectiveConfig, generator: torch.Generator) -> Masking:
    """Mask each token with probability p = (1 - epsilon) t + epsilon, weight 1 / p (Eq. 2)."""
    timestep_B = sample_timesteps(batch, objective.timesteps, generator)
    probability_B = (1 - objective.epsilon) * timestep_B + objective.epsilon
    masked_BL = torch.rand(batch, length, generator=generator) < probability_B[:, None]
    return Masking(masked_BL, timestep_B, 1 / probability_B)


def mask_validation(batch: int, length: int, generator: torch.Generator) -> Masking:
    """Mask exactly n tokens of each sequence, n stratified over 1..L, weight L / n.

    The mean over n of (L / n) sum CE is the same bound as the integral over t of (1 / t) sum CE (LLaDA, arXiv
    2502.09992, Eq. 6) with the variance of the mask count removed; stratifying n removes most of what is left.
    """
    position_B = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    count_B = (1 + (position_B * length).floor()).clamp(max=length)
    count_B = count_B[torch.randperm(batch, generator=generator)]
    rank_BL = torch.rand(batch, length, generator=generator).argsort(1).argsort(1)
    return Masking(rank_BL < count_B[:, None], count_B / length, length / count_B)
