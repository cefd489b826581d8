"""Routing rules: which experts a token goes to, and with what weight."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import ModelConfig, RouterKind


class Routing(NamedTuple):
    """One layer's routing of N tokens to K of E experts."""

    logits_NE: Tensor  # fp32, before the softmax
    probs_NE: Tensor  # fp32, rows sum to 1
    gates_NK: Tensor  # fp32, what each chosen expert's output is multiplied by
    experts_NK: Tensor  # int64, the chosen experts


class TopKRouter(nn.Module):
    """Token choice: bias-free linear, fp32 softmax over all experts, then the top k (LLaDA-MoE; OLMoE, arXiv 2409.02060).

    The gates are the chosen probabilities as they are; with `renormalise` they are divided by their sum.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.renormalise = config.top_k, config.router.renormalise
        self.weight_ED = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x_ND: Tensor) -> Routing:
        """Route N tokens. x_ND: (N, D) in any floating type; the arithmetic is fp32, under autocast too."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.weight_ED.float())
            probs_NE = logits_NE.softmax(-1)
            gates_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
            if self.renormalise:
                gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
        return Routing(logits_NE, probs_NE, gates_NK, experts_NK)


ROUTERS: dict[RouterKind, type[TopKRouter]] = {"topk": TopKRouter}
