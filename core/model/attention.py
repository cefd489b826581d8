"""Attention: multi-head with RoPE, what its tokens see, and keys and values that outlive a pass.

Shapes: B sequences of L positions, W tokens of a pass (some of them, L, or 2 L where noisy tokens stand beside their clean
selves), D hidden size, H heads, G key and value heads, P head size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.norm import RMSNorm


class Store:
    """One layer's keys, after RoPE, and values of L positions: (B, G, L, P) each, once a pass has filled it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.keys_BGLP, self.values_BGLP = torch.empty(0), torch.empty(0)

    def update(self, keys_BGWP: Tensor, values_BGWP: Tensor, position_BW: Tensor | None) -> None:
        """Put the keys and values of a pass where they belong; position_BW as in Window."""
        if position_BW is None:
            self.keys_BGLP, self.values_BGLP = self._room(keys_BGWP), self._room(values_BGWP)
            return
        if not self.keys_BGLP.numel():  # nothing but this pass yet
            self.keys_BGLP, self.values_BGLP = (
                x.new_zeros(*x.shape[:2], self.length, x.shape[3]) for x in (keys_BGWP, values_BGWP)
            )
        index = position_BW[:, None, :, None].expand_as(keys_BGWP)
        self.keys_BGLP.scatter_(2, index, keys_BGWP)
        self.values_BGLP.scatter_(2, index, values_BGWP)

    def _room(self, x_BGWP: Tensor) -> Tensor:
        return F.pad(x_BGWP, (0, 0, 0, self.length - x_BGWP.shape[2]))


class View(NamedTuple):
    """Keys that a layer's attention sees in a pass.

    mask: bool (B or 1, 1, W or 1, keys), True where a query sees a key; None: all. position_BW: int64 (B or 1, W), each
    token's place in its sequence, or in its segment of one; None: in order. store: the layer's, of a pass over some
    positions, which sees the first `extent` of it; None: the pass sees itself alone.
    """

    mask: Tensor | None
    position_BW: Tensor | None
    store: Store | None = None
    extent: int = 0

    def seen(self, keys_BGWP: Tensor, values_BGWP: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values that the pass may see, (B, G, keys, P); the store takes those of the pass."""
        if self.store is None:
            return keys_BGWP, values_BGWP
        self.store.update(keys_BGWP, values_BGWP, self.position_BW)
        return self.store.keys_BGLP[:, :, : self.extent], self.store.values_BGLP[:, :, : self.extent]


class Window(NamedTuple):
    """Positions of a pass, and the positions that they attend to.

    position_BW: int64, each sequence's own; None: the first W, in order. visible: bool, which of the first `extent`
    positions may be seen, (B, extent), or by which of the pass, (B, W, extent); None: all. stores: each layer's.
    """

    position_BW: Tensor | None
    visible: Tensor | None
    extent: int
    stores: list[Store]

    def at(self, layer: int) -> View:
        """One layer's part of it."""
        rows = None if self.visible is None else self.visible if self.visible.ndim == 3 else self.visible[:, None]
        mask = None if rows is None else rows[:, None]
        return View(mask, self.position_BW, self.stores[layer], self.extent)


def new_stores(model: ModelConfig, length: int) -> list[Store]:
    """Room for sequences of a length, for each layer."""
    return [Store(length) for _ in range(model.num_layers)]


def block_causal(length: int, block_length: int, device: torch.device) -> View:
    """A token sees its own block and those before it."""
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    return View((block_L[:, None] >= block_L)[None, None], place_L[None])


def beside_clean(length: int, block_length: int, device: torch.device) -> View:
    """Noisy tokens, then the same sequence clean: a noisy token sees its own noisy block and the clean ones before it.

    Clean tokens see as in `block_causal`, and nothing noisy, so that one pass computes the conditionals of all blocks
    (BD3-LM, arXiv 2503.09573, Sec. 3.2 and App. B.6: block-diagonal, offset block-causal and block-causal masks).
    """
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    same_LL, before_LL = block_L[:, None] == block_L, block_L[:, None] > block_L
    noisy_LW = torch.cat([same_LL, before_LL], 1)
    clean_LW = torch.cat([torch.zeros_like(same_LL), same_LL | before_LL], 1)
    return View(torch.cat([noisy_LW, clean_LW])[None, None], place_L.repeat(2)[None])


def confine(segments_BL: Tensor, *, causal: bool) -> View:
    """Let the tokens of a segment see one another. segments_BL: (B, L) int, equal for neighbours of one segment."""
    place_L, place_BL = torch.arange(segments_BL.shape[1], device=segments_BL.device), places(segments_BL)
    start_BL = place_L - place_BL
    mask_BLL = start_BL[:, :, None] == start_BL[:, None, :]
    if causal:
        mask_BLL = mask_BLL & (place_L[:, None] >= place_L)
    return View(mask_BLL[:, None], place_BL)


def places(segments_BL: Tensor) -> Tensor:
    """Each token's place in its segment, from 0 on. Returns (B, L) int64."""
    place_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    begins_BL = F.pad(segments_BL.diff(dim=1) != 0, (1, 0), value=True)
    return place_L - torch.where(begins_BL, place_L, 0).cummax(1).values


class Attention(nn.Module):
    """Multi-head attention: RMSNorm over queries and keys (per head, over the whole projection, or none), then RoPE.

    With fewer key and value heads than query heads, each serves a group of queries (arXiv 2305.13245).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, shared = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.kv_heads * config.head_dim,
        )
        self.head_dim, self.causal, self.qk_norm = config.head_dim, config.causal, config.qk_norm
        self.grouped = config.kv_heads < config.num_heads
        self.q_proj = nn.Linear(hidden, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, shared, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, hidden, bias=False)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(config.head_dim if per_head else inner, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim if per_head else shared, config.norm_eps)

    def forward(self, x_BLD: Tensor, rotation: tuple[Tensor, Tensor], view: View | None = None) -> Tensor:
        q_BLI, k_BLI = self.q_proj(x_BLD), self.k_proj(x_BLD)
        if self.qk_norm == "projection":
            q_BLI, k_BLI = self.q_norm(q_BLI), self.k_norm(k_BLI)
        q_BLHP, k_BLGP = self._heads(q_BLI), self._heads(k_BLI)
        if self.qk_norm == "head":
            q_BLHP, k_BLGP = self.q_norm(q_BLHP), self.k_norm(k_BLGP)
        q = rotate(q_BLHP.transpose(1, 2), rotation)
        k = rotate(k_BLGP.transpose(1, 2), rotation)
        v = self._heads(self.v_proj(x_BLD)).transpose(1, 2)
        k, v, mask, causal = k.to(q.dtype), v.to(q.dtype), None, self.causal
        if view is not None:
            (k, v), mask, causal = view.seen(k, v), view.mask, self.causal and view.position_BW is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(-1, (-1, self.head_dim))


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
