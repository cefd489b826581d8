"""What a router may see, what it answers, and how a timestep is told to it.

Shapes: B sequences of L tokens, N = B L of them in order, K experts of each among E, D hidden size, F time features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """One layer's routing of N tokens to K of E experts."""

    logits_NE: Tensor  # fp32, before the softmax
    probs_NE: Tensor  # fp32, rows sum to 1
    gates_NK: Tensor  # fp32, what each chosen expert's output is multiplied by
    experts_NK: Tensor  # int64, the chosen experts
    slots: int | None = (
        None  # None: all N K entries are experts; else some are -1, no expert, and at most so many aren't
    )


class Conditions(NamedTuple):
    """What a router may know of its tokens beside their hidden states.

    timestep_B: fp32, the timestep that the router is told (model.router.sees says which). ratio_B: fp32, the realised mask
    ratio. tokens_BL: int64, masks in place. residual_ND: the residual stream before the layer's norm.
    """

    timestep_B: Tensor
    ratio_B: Tensor
    tokens_BL: Tensor
    residual_ND: Tensor | None = None

    def per_token(self, rows_BX: Tensor) -> Tensor:
        """A row of each sequence, repeated for its tokens. Returns (N, X)."""
        length = self.tokens_BL.shape[1]
        return rows_BX.unsqueeze(1).expand(-1, length, -1).reshape(-1, rows_BX.shape[-1])


def time_features(timestep_B: Tensor, features: int) -> Tensor:
    """Cosines and sines of 1000 t at geometric frequencies from 1 to 1e-4 (DiT, arXiv 2212.09748). Returns (B, F) fp32."""
    half = features // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, device=timestep_B.device, dtype=torch.float32) / half)
    angle_BF = 1000.0 * timestep_B.float()[:, None] * frequency
    return torch.cat([angle_BF.cos(), angle_BF.sin()], -1)


def share_of_mean(ratio_B: Tensor, schedule: str) -> Tensor:
    """How much of the mean compute a sequence of a mask ratio gets: 2 (1 - r) "linear_reverse", 2 r "linear", 1 "constant".

    The mean over r ~ U(0, 1) is 1. Returns (B,).
    """
    shares = {"linear_reverse": 2 * (1 - ratio_B), "linear": 2 * ratio_B, "constant": torch.ones_like(ratio_B)}
    return shares[schedule]


def hashed(key: Tensor) -> Tensor:
    """A fixed hash of int64 keys, as good as random bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ _shifted(key, shift)) * factor
    return key ^ _shifted(key, 31)


def _shifted(key: Tensor, places: int) -> Tensor:
    return (key >> places) & ((1 << (64 - places)) - 1)  # torch shifts the sign in
