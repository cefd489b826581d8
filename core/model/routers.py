"""Routing rules: which experts a token goes to, and with what weight."""

from typing import Any, NamedTuple

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

    The gates are the chosen scores as they are; with `renormalise` they are divided by their sum. `scores="sigmoid"`
    scores each expert on its own (DeepSeek-V3, arXiv 2412.19437, Eq. 15); probs_NE are then the scores over their sum.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.settings = config.experts_per_token, config.router
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.hidden_size))

    def forward(self, x_ND: Tensor) -> Routing:
        """Route N tokens. x_ND: (N, D) in any floating type; the arithmetic is fp32, under autocast too."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.weight_ED.float())
            if self.settings.scores == "sigmoid":
                scores_NE = logits_NE.sigmoid()
                probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
            else:
                scores_NE = probs_NE = logits_NE.softmax(-1)
            gates_NK, experts_NK = self.choose(scores_NE)
            if self.settings.renormalise:
                gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
            if self.settings.gate_scale != 1:
                gates_NK = gates_NK * self.settings.gate_scale
        return Routing(logits_NE, probs_NE, gates_NK, experts_NK)

    def choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and indices of the chosen experts, both (N, K)."""
        gates_NK, experts_NK = scores_NE.topk(self.top_k, dim=-1)
        return gates_NK, experts_NK

    def rebalance(self, counts_E: Tensor) -> None:
        """Called after each optimizer step with the step's (E,) assignments; token choice learns nothing from it."""


class BiasBalancedRouter(TopKRouter):
    """Loss-free balancing: a bias per expert, moved by load, in the choice only and never in the gate.

    After each step b_i grows by `bias_update_rate` where expert i got less than the mean load, and shrinks where it got
    more (arXiv 2408.15664, Algorithm 1). The bias is state, not a parameter: no gradient reaches it.
    """

    bias_E: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("bias_E", torch.zeros(config.experts, dtype=torch.float32))

    def _apply(self, *arguments: Any, **settings: Any) -> "BiasBalancedRouter":
        super()._apply(*arguments, **settings)
        self.bias_E = self.bias_E.float()  # an engine that turns modules to bf16 would round the updates away
        return self

    def choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        experts_NK = (scores_NE + self.bias_E).topk(self.top_k, dim=-1).indices
        return scores_NE.gather(-1, experts_NK), experts_NK

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        load_E = counts_E.float()
        self.bias_E += self.settings.bias_update_rate * (load_E.mean() - load_E).sign()


ROUTERS: dict[RouterKind, type[TopKRouter]] = {"topk": TopKRouter, "bias_balanced": BiasBalancedRouter}
