"""Routers: what they see and return, the timestep's features, and token choice, which other kinds build on.

`router` registers a class as a kind of model.router.kind; core.config.router_kinds has the kinds that come with the package.

Shapes: B sequences of L tokens, N = B L of them in order, K experts of each among E, D hidden size, F time features.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ROUTERS, ModelConfig, RouterKind
from core.model.precision import without_autocast

BELL = 0.22  # deviation of the gaussian schedule: its mean is 1/2 then


class Routing(NamedTuple):
    """One layer's routing of N tokens to K of E experts."""

    logits_NE: Tensor  # fp32, before the softmax
    probs_NE: Tensor  # fp32, rows sum to 1
    gates_NK: Tensor  # fp32, what each chosen expert's output is multiplied by
    experts_NK: Tensor  # int64, the chosen experts
    slots: int | None = (
        None  # None: all N K entries are experts; else some are -1, no expert, and at most so many aren't
    )
    real_N: Tensor | None = None  # bool, False for filling, which reaches no expert; None: there is none


class Choice(NamedTuple):
    """Gates and indices of the chosen experts. slots: as in Routing."""

    gates_NK: Tensor
    experts_NK: Tensor
    slots: int | None = None


class Conditions(NamedTuple):
    """Inputs of a router beside the hidden states.

    timestep_B: fp32, the timestep that the router is told (model.router.sees says which). ratio_B: fp32, the realised mask
    ratio. tokens_BL: int64, masks in place. residual_ND: the residual stream before the layer's norm. segments_BL: int,
    which of its sequence's texts each token is of; None: a sequence is one. real_N: as in Routing.
    """

    timestep_B: Tensor
    ratio_B: Tensor
    tokens_BL: Tensor
    residual_ND: Tensor | None = None
    segments_BL: Tensor | None = None
    real_N: Tensor | None = None

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


def share_of_range(ratio_B: Tensor, schedule: str) -> Tensor:
    """Compute of a sequence with a mask ratio, from the least (0) to the most (1). Returns (B,).

    1/2 "constant", r "linear", (1 - cos(pi r)) / 2 "cosine", a bell around 1/2 of deviation 0.22 that is 0 at both ends
    "gaussian", and one minus each as "..._reverse" (EC-DLM, arXiv 2604.01622, Section 4). The mean over r ~ U(0, 1) is 1/2.
    """
    if schedule == "constant":
        return torch.full_like(ratio_B, 0.5)
    kind = schedule.removesuffix("_reverse")
    if kind == "linear":
        share_B = ratio_B
    elif kind == "cosine":
        share_B = (1 - torch.cos(math.pi * ratio_B)) / 2
    else:
        end = math.exp(-(0.5**2) / (2 * BELL**2))
        share_B = ((-((ratio_B - 0.5) ** 2) / (2 * BELL**2)).exp() - end) / (1 - end)
    return share_B if kind == schedule else 1 - share_B


def hashed(key: Tensor) -> Tensor:
    """A fixed hash of int64 keys, as good as random bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ _shifted(key, shift)) * factor
    return key ^ _shifted(key, 31)


def _shifted(key: Tensor, places: int) -> Tensor:
    return (key >> places) & ((1 << (64 - places)) - 1)  # torch shifts the sign in


class Router(nn.Module):
    """Scores all experts for each token and chooses among them; a rule overrides `logits`, `choose`, or both.

    Scores are the softmax of the logits, or with `scores="sigmoid"` each expert's own (DeepSeek-V3, arXiv 2412.19437,
    Eq. 15; probs_NE are then the scores over their sum). The gates are the chosen scores as they are; with `renormalise`
    they are divided by their sum.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.top_k, self.experts, self.settings, self.layer = (
            config.experts_per_token, config.experts, config.router, layer,
        )  # fmt: skip

    def forward(self, x_ND: Tensor, given: Conditions | None = None) -> Routing:
        """Route N tokens. x_ND: (N, D) in any floating type; the arithmetic is fp32, under autocast too."""
        with without_autocast(x_ND):
            logits_NE = self.logits(x_ND.float(), given)
            if self.settings.scores == "sigmoid":
                scores_NE = logits_NE.sigmoid()
                probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
            else:
                scores_NE = probs_NE = logits_NE.softmax(-1)
            gates_NK, experts_NK, slots = self.choose(logits_NE, scores_NE, given)
            if self.settings.renormalise:
                gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            if self.settings.gate_scale != 1:
                gates_NK = gates_NK * self.settings.gate_scale
        real_N = None if given is None else given.real_N
        if real_N is not None:
            gates_NK, experts_NK = gates_NK.where(real_N[:, None], 0.0), experts_NK.where(real_N[:, None], -1)
            slots = experts_NK.numel() if slots is None else slots
        return Routing(logits_NE, probs_NE, gates_NK, experts_NK, slots, real_N)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        """Each expert's logit, (N, E). given: None where nothing is known but x."""
        raise NotImplementedError

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        """The experts of each token. scores_NE: what its gates are made of."""
        return Choice(*scores_NE.topk(self.top_k, dim=-1))

    def rebalance(self, counts_E: Tensor) -> None:
        """Called after each optimizer step with the step's (E,) assignments; most rules learn nothing from it."""


R = TypeVar("R", bound=type[Router])


def router(name: str, **traits: Any) -> Callable[[R], R]:
    """Register a class as model.router.kind=name. traits: fields of core.config.model.RouterKind."""

    def register(cls: R) -> R:
        ROUTERS.add(RouterKind(name, cls, **{"weights": None, **traits}))
        return cls

    return register


class TopKRouter(Router):
    """Token choice: bias-free linear, fp32 softmax over all experts, then the top k (LLaDA-MoE; OLMoE, arXiv 2409.02060)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.hidden_size))

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return F.linear(x_ND, self.weight_ED.float())
