"""Expert compute: a plain reference, and the fast path that is checked against it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.grouped_experts import fill_multiple, mix, sort_by_expert
from core.model.precision import computed_in


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


def reference_moe(experts: Experts, x_ND: Tensor, gates_NK: Tensor, experts_NK: Tensor) -> Tensor:
    """The mixture written as its definition: for every token, the gated sum of its chosen experts' outputs.

    x_ND: (N, D); gates_NK, experts_NK: (N, K). Returns (N, D). Slow; kept as what the fast path must equal.
    """
    rows = []
    for x_D, gates_K, experts_K in zip(x_ND, gates_NK, experts_NK, strict=True):
        out_D = torch.zeros_like(x_D)
        for gate, expert in zip(gates_K, experts_K.tolist(), strict=True):
            if expert < 0:
                continue
            hidden_W = F.silu(experts.gate_EWD[expert] @ x_D) * (experts.up_EWD[expert] @ x_D)
            out_D = out_D + gate * (experts.down_EDW[expert] @ hidden_W)
        rows.append(out_D)
    return torch.stack(rows)
