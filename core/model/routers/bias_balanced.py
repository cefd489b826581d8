"""Token choice balanced by a bias instead of a loss."""

from typing import Any

import torch
from torch import Tensor

from core.config.model import ModelConfig
from core.model.routing import Conditions, TopKRouter


class BiasBalancedRouter(TopKRouter):
    """Loss-free balancing: a bias per expert, moved by load, in the choice only and never in the gate.

    After each step b_i grows by `bias_update_rate` where expert i got less than the mean load, and shrinks where it got
    more (arXiv 2408.15664, Algorithm 1). The bias is state, not a parameter: no gradient reaches it.
    """

    bias_E: Tensor

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.register_buffer("bias_E", torch.zeros(config.experts, dtype=torch.float32))

    def _apply(self, *arguments: Any, **settings: Any) -> "BiasBalancedRouter":
        super()._apply(*arguments, **settings)
        self.bias_E = self.bias_E.float()  # an engine that turns modules to bf16 would round the updates away
        return self

    def choose(
        self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None
    ) -> tuple[Tensor, Tensor, int | None]:
        experts_NK = (scores_NE + self.bias_E).topk(self.top_k, dim=-1).indices
        return scores_NE.gather(-1, experts_NK), experts_NK, None

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        load_E = counts_E.float()
        self.bias_E += self.settings.bias_update_rate * (load_E.mean() - load_E).sign()
