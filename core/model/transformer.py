"""The denoiser: a bidirectional pre-norm transformer with QK-norm, RoPE and sparse feed-forward layers.

Shapes: B batch, L length, D hidden size, H heads, P head size, V vocabulary, N = B L tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import ModelConfig
from core.model.moe import MoE
from core.model.routers import Routing
from core.streams import torch_stream


class LayerRouting(NamedTuple):
    """What one layer's router decided, and how many assignments each expert got."""

    routing: Routing
    counts_E: Tensor


class Attention(nn.Module):
    """Bidirectional multi-head attention with RMSNorm over each head's queries and keys, then RoPE; no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x_BLD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = x_BLD.shape
        shape = (batch, length, self.heads, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x_BLD).view(shape)).transpose(1, 2), rotation)
        k = rotate(self.k_norm(self.k_proj(x_BLD).view(shape)).transpose(1, 2), rotation)
        v = self.v_proj(x_BLD).view(shape).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype))
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (arXiv 2104.09864), halves layout. Returns two (L, P) fp32 tensors."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x_BHLP: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply RoPE; feature i turns with feature i + P/2, as in Llama's released weights."""
    cos, sin = (table.to(x_BHLP.dtype) for table in rotation)
    first, second = x_BHLP.chunk(2, dim=-1)
    return x_BHLP * cos + torch.cat([-second, first], dim=-1) * sin


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MoE(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.post_attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.moe = MoE(config)

    def forward(self, x_BLD: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, LayerRouting]:
        x_BLD = x_BLD + self.attention(self.input_norm(x_BLD), rotation)
        mixed_ND, routing, counts_E = self.moe(self.post_attention_norm(x_BLD).flatten(0, 1))
        return x_BLD + mixed_ND.view(x_BLD.shape), LayerRouting(routing, counts_E)


class Denoiser(nn.Module):
    """Predicts the clean tokens of a partly masked sequence, all positions at once; takes no timestep."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, tokens_BL: Tensor) -> tuple[Tensor, list[LayerRouting]]:
        """Final normalised states (B, L, D) and each layer's routing of the B L tokens."""
        x_BLD = self.embed(tokens_BL)
        rotation = rope_tables(tokens_BL.shape[1], self.config.head_dim, self.config.rope_theta, tokens_BL.device)
        routings = []
        for layer in self.layers:
            x_BLD, routing = layer(x_BLD, rotation)
            routings.append(routing)
        return self.norm(x_BLD), routings

    def forward(self, tokens_BL: Tensor, wanted_BL: Tensor | None = None) -> tuple[Tensor, list[LayerRouting]]:
        """Logits of the clean tokens, and each layer's routing.

        tokens_BL: (B, L) int64, masks in place. wanted_BL: (B, L) bool; where given, logits are computed for those M
        positions only. Returns (M, V), or (B, L, V) without `wanted_BL`.
        """
        hidden_BLD, routings = self.hidden(tokens_BL)
        return self.head(hidden_BLD if wanted_BL is None else hidden_BLD[wanted_BL]), routings


def initialise(model: Denoiser, seed: int) -> None:
    """Draw every weight from a stream named after the parameter.

    Norms are 1; matrices are N(0, init_std^2), those that write to the residual stream scaled by 1 / sqrt(2 layers)
    (GPT-2). A parameter of the same name and shape gets the same weights in every arm of a seed.
    """
    config = model.config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_EDW"))
            std = config.init_std / (2 * config.num_layers) ** 0.5 if writes else config.init_std
            draw = torch.randn(parameter.shape, generator=torch_stream(seed, "weights", name))
            parameter.copy_(draw * std)
