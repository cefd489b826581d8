"""The forward process: timesteps, and which tokens they mask (LLaDA-MoE, arXiv 2509.24389, Sec. 2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from core.config.objective import ObjectiveConfig


class Masking(NamedTuple):
    """Predicted tokens of a batch, and their weights.

    masked_BL: bool, True where the token is hidden (for an autoregressive model: everywhere). timestep_B: t in (0, 1].
    weight_B: what a masked token's cross-entropy counts for. length_B: tokens that could have been masked, so that
    sum(weight * CE over masked) / length is the sequence's NELBO per token.
    """

    masked_BL: Tensor
    timestep_B: Tensor
    weight_B: Tensor
    length_B: Tensor

    @property
    def ratio_B(self) -> Tensor:
        """The realised mask ratio: the share of the tokens that could have been masked that are."""
        return self.masked_BL.sum(1) / self.length_B


def sample_timesteps(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Timesteps t in (0, 1], marginally uniform. Returns (count,).

    "uniform" draws each on its own; "stratified" draws one in each of `count` equal parts of (0, 1], in random order;
    "antithetic" draws pairs (t, 1 - t). The latter two leave every expectation as it is and lower the variance of the
    loss (stratification: VDM, arXiv 2107.00630, App. I.1).
    """
    t = 1 - torch.rand(count, generator=generator)  # (0, 1]: t = 0 masks nothing
    if kind == "stratified":
        t = (torch.arange(count) + t) / count
        t = t[torch.randperm(count, generator=generator)]
    elif kind == "antithetic":
        half = t[: (count + 1) // 2]
        t = torch.cat([half, 1 - half])[:count].clamp(min=torch.finfo(t.dtype).tiny)
    return t


def mask_tokens(
    batch: int,
    length: int,
    objective: ObjectiveConfig,
    generator: torch.Generator,
    maskable_BL: Tensor | None = None,
) -> Masking:
    """The training masks of a batch.

    masked_diffusion masks each token with probability p = (1 - epsilon) t + epsilon and weight 1 / p (Eq. 2); with
    `exact_mask_count` it masks exactly n = ceil(t R) of the R maskable tokens with weight R / n instead. sft does the
    same where `maskable_BL` (bool, True in responses) allows it (Eq. 5).
    """
    maskable_BL = torch.ones(batch, length, dtype=torch.bool) if maskable_BL is None else maskable_BL
    timestep_B = sample_timesteps(batch, objective.timesteps, generator)
    noise_BL = torch.rand(batch, length, generator=generator)
    if objective.exact_mask_count:
        return _mask_exactly(timestep_B, noise_BL, maskable_BL)
    probability_B = (1 - objective.epsilon) * timestep_B + objective.epsilon
    masked_BL = (noise_BL < probability_B[:, None]) & maskable_BL
    return Masking(masked_BL, timestep_B, 1 / probability_B, maskable_BL.sum(1).float())


def mask_validation(batch: int, length: int, generator: torch.Generator, maskable_BL: Tensor | None = None) -> Masking:
    """The validation masks: exactly n of each sequence's R maskable tokens, n stratified over 1..R, weight R / n.

    The mean over n of (R / n) sum CE is the same bound as the integral over t of (1 / t) sum CE (LLaDA, arXiv
    2502.09992, Eq. 6) with the variance of the mask count removed; stratifying n removes most of what is left.
    """
    maskable_BL = torch.ones(batch, length, dtype=torch.bool) if maskable_BL is None else maskable_BL
    position_B = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    position_B = position_B[torch.randperm(batch, generator=generator)]
    return _mask_exactly(position_B, torch.rand(batch, length, generator=generator), maskable_BL, floor=True)


def _mask_exactly(position_B: Tensor, noise_BL: Tensor, maskable_BL: Tensor, *, floor: bool = False) -> Masking:
    """Mask the n maskable tokens of least noise, n uniform on 1..R where the position is uniform on (0, 1]."""
    length_B = maskable_BL.sum(1).float()
    count_B = 1 + (position_B * length_B).floor() if floor else (position_B * length_B).ceil()
    count_B = torch.minimum(count_B.clamp(min=1), length_B)
    rank_BL = noise_BL.masked_fill(~maskable_BL, 2.0).argsort(1).argsort(1)
    return Masking(rank_BL < count_B[:, None], count_B / length_B, length_B / count_B, length_B)
