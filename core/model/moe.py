"""Feed-forward layers: dense, and sparse (route, sort by expert, mix: dispatch, experts and combine in one)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.balance import expert_counts, over_ranks
from core.model.grouped_experts import fill_multiple, mix, sort_by_expert
from core.model.precision import computed_in
from core.model.routing import Conditions, Routing
from core.registry import load


class Experts(nn.Module):
    """E SwiGLU experts of width W over D features: down(silu(gate(x)) * up(x)), no biases.

    Weights are stacked over experts in the (out, in) order of linear layers: gate_EWD, up_EWD, down_EDW.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = config.experts, config.width_of_expert, config.hidden_size
        self.gate_EWD = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_EWD = nn.Parameter(torch.empty(experts, width, hidden))
        self.down_EDW = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(
        self, x_ND: Tensor, gates_NK: Tensor, experts_NK: Tensor, counts_E: Tensor, slots: int | None = None
    ) -> Tensor:
        """The gated sum of each row's experts. Returns (N, D), in autocast's type where it is on.

        x_ND: (N, D) in any order; gates_NK, experts_NK: (N, K); counts_E: (E,) assignments of each expert; slots as in
        Routing. With K = 1 and gates of 1 it is each row's expert, in the rows' own order.
        """
        x_ND = x_ND.to(computed_in(x_ND))
        assignments = sort_by_expert(experts_NK, counts_E, fill_multiple(x_ND), slots)
        return mix(x_ND, gates_NK, assignments, self.gate_EWD, self.up_EWD, self.down_EDW)


class SwiGLU(nn.Module):
    """A dense feed-forward layer: down(silu(gate(x)) * up(x)), no biases. x: (..., D); returns the same shape."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """A dropless mixture of experts: every token reaches every expert that it chose, whatever their load."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.num_experts = config.experts
        self.router = load(config.router.traits.implementation)(config, layer)
        self.experts = Experts(config)
        width = config.shared_expert_width
        self.shared_expert = SwiGLU(config.hidden_size, width) if width else None

    def forward(self, x_ND: Tensor, given: Conditions | None = None) -> tuple[Tensor, Routing, Tensor]:
        """Returns the mixture (N, D), its routing, and the (E,) assignments of each expert over all ranks."""
        routing = self.router(x_ND, given)
        counts_E = expert_counts(routing.experts_NK, self.num_experts, ragged=routing.slots is not None)
        mixed_ND = self.experts(x_ND, routing.gates_NK, routing.experts_NK, counts_E, routing.slots)
        if self.shared_expert is not None:
            mixed_ND = mixed_ND + self.shared_expert(x_ND)
        return mixed_ND, routing, over_ranks(counts_E)
