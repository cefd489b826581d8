"""The sparse feed-forward layer: route -> dispatch -> experts -> combine."""

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.model.balance import expert_counts
from core.model.experts import Experts, SwiGLU
from core.model.routers import ROUTERS, Routing


class MoE(nn.Module):
    """A dropless mixture of experts: every token reaches every expert that it chose, whatever their load."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts = config.experts
        self.router = ROUTERS[config.router.kind](config)
        self.experts = Experts(config)
        width = config.shared_expert_width
        self.shared_expert = SwiGLU(config.hidden_size, width) if width else None

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Routing, Tensor]:
        """Returns the mixture (N, D), the routing that made it, and the (E,) assignments of each expert."""
        routing = self.router(x_ND)
        counts_E = expert_counts(routing.experts_NK, self.num_experts)
        mixed_ND = dispatch_and_combine(self.experts, x_ND, routing, counts_E)
        if self.shared_expert is not None:
            mixed_ND = mixed_ND + self.shared_expert(x_ND)
        return mixed_ND, routing, counts_E


@torch.compiler.disable  # torch 2.13 traces grouped_mm in bf16 only, though it computes fp32 as well
def dispatch_and_combine(experts: Experts, x_ND: Tensor, routing: Routing, counts_E: Tensor) -> Tensor:
    """Sort assignments by expert, run each expert once on its rows, and sum the gated outputs per token. Returns (N, D)."""
    top_k = routing.experts_NK.shape[1]
    order_M = routing.experts_NK.reshape(-1).argsort(stable=True)
    out_MD = experts(x_ND[order_M // top_k], counts_E)
    gated_MD = out_MD * routing.gates_NK.reshape(-1, 1)[order_M].to(out_MD.dtype)
    return x_ND.new_zeros(x_ND.shape, dtype=gated_MD.dtype).index_add(0, order_M // top_k, gated_MD)
