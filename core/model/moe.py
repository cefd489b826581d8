"""The sparse feed-forward layer: route, sort by expert, mix (dispatch, experts and combine in one)."""

from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.balance import expert_counts, over_ranks
from core.model.experts import Experts, SwiGLU
from core.model.routing import Conditions, Routing
from core.registry import load


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
