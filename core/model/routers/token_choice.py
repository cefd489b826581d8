"""Token choice that is balanced by a bias instead of a loss, and with a number of experts that follows the mask ratio."""

from typing import Any

import torch
from torch import Tensor

from core.config.model import ModelConfig
from core.model.routing import Choice, Conditions, TopKRouter, share_of_range


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

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        experts_NK = (scores_NE + self.bias_E).topk(self.top_k, dim=-1).indices
        return Choice(scores_NE.gather(-1, experts_NK), experts_NK)

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        load_E = counts_E.float()
        self.bias_E += self.settings.bias_update_rate * (load_E.mean() - load_E).sign()


class AdaptiveKRouter(TopKRouter):
    """Token choice with k a function of the sequence's mask ratio: 1, 2, ... 2 k - 1 on equal parts of it, mean k.

    The schedule is "linear_reverse" unless told otherwise: more experts where less is masked (EC-DLM's schedule).
    """

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        assert given is not None, "this rule needs a mask ratio"
        most = 2 * self.top_k - 1
        gates_NK, experts_NK = scores_NE.topk(most, dim=-1)
        share_B = share_of_range(given.ratio_B, self.settings.k_schedule or "linear_reverse")
        k_B = 1 + (share_B * most).floor().long().clamp(0, most - 1)
        unused_NK = torch.arange(most, device=k_B.device) >= given.per_token(k_B.unsqueeze(1))
        return Choice(gates_NK.masked_fill(unused_NK, 0.0), experts_NK.masked_fill(unused_NK, -1), experts_NK.numel())
