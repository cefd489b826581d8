"""The network: a pre-norm transformer with RoPE and sparse or dense feed-forward layers, bidirectional or causal.

Shapes: B batch, L length, D hidden size, H heads, G key and value heads, P head size, V vocabulary, N = B L tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.config.model import ModelConfig
from core.model.attention import Attention, View, Window, beside_clean, block_causal, confine, rope_tables
from core.model.moe import MoE, SwiGLU
from core.model.norm import RMSNorm
from core.model.routing import Conditions, Routing
from core.runtime.random_streams import torch_stream


class LayerRouting(NamedTuple):
    """Decisions of one layer's router, and the number of assignments per expert."""

    routing: Routing
    counts_E: Tensor


class Hidden(NamedTuple):
    """Final normalised states (B, L, D); each sparse layer's routing of the B L tokens; the sum of each layer's output.

    sums_L: (layers + 1,) fp32, the embedding's first: one that is not finite names the layer that broke.
    """

    states_BLD: Tensor
    routings: list[LayerRouting]
    sums_L: Tensor


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), where the feed-forward is a mixture or dense."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        sparse = index in config.sparse_layers
        self.moe = MoE(config, index) if sparse else None
        self.dense = None if sparse else SwiGLU(config.hidden_size, config.dense_width)

    def forward(
        self,
        x_BLD: Tensor,
        rotation: tuple[Tensor, Tensor],
        given: Conditions,
        view: View | None = None,
    ) -> tuple[Tensor, LayerRouting | None]:
        x_BLD = x_BLD + self.attention(self.input_norm(x_BLD), rotation, view)
        normed_BLD = self.post_attention_norm(x_BLD)
        if self.dense is not None:
            return x_BLD + self.dense(normed_BLD), None
        assert self.moe is not None
        mixed_ND, routing, counts_E = self.moe(
            normed_BLD.flatten(0, 1), given._replace(residual_ND=x_BLD.flatten(0, 1))
        )
        return x_BLD + mixed_ND.view(x_BLD.shape), LayerRouting(routing, counts_E)


class Denoiser(nn.Module):
    """Predicts the clean tokens of a partly masked sequence, all positions at once.

    The timestep reaches its routers alone, and only those whose rule asks for one.

    With `causal` it is an autoregressive language model: position i's logits are of token i + 1. With `shifted` it sees both
    sides and still predicts a token from the state before its own, so that a causal model's weights keep their meaning; the
    first token, which nothing comes before, from its own (Dream, arXiv 2508.15487).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_layers = False  # in the backward pass, rather than keep their activations
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        # A tied head is no module of its own, so that the shared matrix is counted and saved once.
        tied = config.tied_embeddings
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def conditions(
        self, tokens_BL: Tensor, timestep_B: Tensor | None = None, ratio_B: Tensor | None = None
    ) -> Conditions:
        """Build the routers' inputs: where it isn't given, the share of the tokens that are masks, as while sampling."""
        if ratio_B is None:
            ratio_B = (tokens_BL == (-1 if self.config.mask_id is None else self.config.mask_id)).float().mean(1)
        if self.config.router.sees == "constant":
            timestep_B = torch.full_like(ratio_B, 0.5)
        return Conditions(ratio_B if timestep_B is None else timestep_B, ratio_B, tokens_BL)

    def hidden(
        self,
        tokens_BL: Tensor,
        timestep_B: Tensor | None = None,
        ratio_B: Tensor | None = None,
        window: Window | None = None,
        segments_BL: Tensor | None = None,
        clean_BL: Tensor | None = None,
        block_length: int | None = None,
        real_BL: Tensor | None = None,
    ) -> Hidden:
        """Run all layers. tokens_BL: (B, L) int64, masks in place; timestep_B, ratio_B as in `conditions`.

        window: where given, tokens_BL are those of its positions only, (B, W), and see the rest in its stores. segments_BL:
        (B, L) int; where given, tokens see those of their own segment alone, and positions count from its start; not with
        blocks. block_length: of a network with blocks, instead of its own. clean_BL: the same tokens without masks, which
        those of later blocks then see instead: routings are of the noisy tokens and the clean ones, sequence by sequence.
        real_BL: bool, False for filling, which no expert meets; None: there is none.
        """
        length, seen = tokens_BL.shape[1], None
        block_length = block_length or self.config.block_length
        if window is None and block_length is not None and block_length < length:
            see = block_causal if clean_BL is None else beside_clean
            seen = see(length, block_length, tokens_BL.device)
            tokens_BL = tokens_BL if clean_BL is None else torch.cat([tokens_BL, clean_BL], 1)
        elif segments_BL is not None:
            seen = confine(segments_BL, causal=self.config.causal)
        given = self.conditions(tokens_BL, timestep_B, ratio_B)
        given = given._replace(segments_BL=segments_BL, real_N=None if real_BL is None else real_BL.flatten())
        x_BLD = self.embed(tokens_BL)
        rotation = self._rotation(tokens_BL, window, seen)
        routings, sums = [], [x_BLD.detach().sum(dtype=torch.float32)]
        recompute = self.recompute_layers and torch.is_grad_enabled() and window is None
        for index, layer in enumerate(self.layers):
            inputs = (x_BLD, rotation, given, seen if window is None else window.at(index))
            if recompute:
                x_BLD, routing = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BLD, routing = layer(*inputs)
            if routing is not None:
                routings.append(routing)
            sums.append(x_BLD.detach().sum(dtype=torch.float32))
        return Hidden(self.norm(x_BLD[:, :length]), routings, torch.stack(sums))

    def _rotation(self, tokens_BL: Tensor, window: Window | None, seen: View | None) -> tuple[Tensor, Tensor]:
        length = tokens_BL.shape[1] if window is None else window.extent
        tables = rope_tables(length, self.config.head_dim, self.config.rope_theta, tokens_BL.device)
        where = window or seen
        if where is None or where.position_BW is None:
            return tables
        cos_B1WP, sin_B1WP = (table[where.position_BW][:, None] for table in tables)
        return cos_B1WP, sin_B1WP

    def forward(self, tokens_BL: Tensor, wanted_BL: Tensor | None = None) -> tuple[Tensor, list[LayerRouting]]:
        """Logits of the clean tokens, and each sparse layer's routing.

        tokens_BL: (B, L) int64, masks in place. wanted_BL: (B, L) bool; where given, logits are computed for those M
        positions only. Returns (M, V), or (B, L, V) without `wanted_BL`.
        """
        hidden_BLD, routings, _ = self.hidden(tokens_BL)
        if self.config.shifted:
            hidden_BLD = torch.cat([hidden_BLD[:, :1], hidden_BLD[:, :-1]], dim=1)
        return self.logits(hidden_BLD if wanted_BL is None else hidden_BLD[wanted_BL]), routings

    def source(self, position: Tensor, length: int) -> Tensor:
        """Indices of the states that predict the tokens at the given positions, of any shape, of sequences of a length laid
        end to end: their own, but with `shifted`. A causal network's inputs are shifted instead."""
        return position - (position % length > 0).long() if self.config.shifted else position

    def mixtures(self) -> list[MoE]:
        """The mixtures of the sparse layers, in order."""
        return [layer.moe for layer in self.layers if layer.moe is not None]  # type: ignore[misc]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final normalised states (..., D) to logits (..., V)."""
        return F.linear(hidden, self.embed.weight) if self.head is None else self.head(hidden)


def whole_name(name: str, parameter: nn.Parameter) -> str:
    """Name of a parameter in the model on one device: a rank's part of the experts has names of its own."""
    return f"{name.rpartition('.')[0]}.{parameter.called}" if hasattr(parameter, "called") else name


def initialise(model: Denoiser, seed: int) -> None:
    """Draw every weight from a stream named after the parameter.

    Norms are 1; biases 0, and what a router adds for a timestep; matrices are N(0, init_std^2), those that write to the
    residual stream scaled by 1 / sqrt(2 layers) (GPT-2). A parameter of the same name and shape gets the same weights in
    every arm of a seed, and on every rank: one that holds a part of the experts draws them all and keeps its own.
    """
    config = model.config
    with torch.no_grad():
        for own_name, parameter in model.named_parameters():
            name = whole_name(own_name, parameter)
            if getattr(parameter, "starts_at_zero", False):
                parameter.zero_()
                continue
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "down_EDW"))
            std = config.init_std / (2 * config.num_layers) ** 0.5 if writes else config.init_std
            shape, held = getattr(parameter, "whole_shape", parameter.shape), getattr(parameter, "held", slice(None))
            draw = torch.randn(shape, generator=torch_stream(seed, "weights", name))
            parameter.copy_(draw[held] * std)
