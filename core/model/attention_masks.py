"""Attention masks: block-causal ones, and those that confine tokens to their segment of a packed sequence.

Shapes: B sequences of L positions, W tokens of a pass (L, or 2 L where noisy tokens stand beside their clean selves), G key
and value heads, P head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class BlockMask(NamedTuple):
    """place_W: each token's place in its sequence. mask: bool (1, 1, W, W), True where a row sees a column.

    For a layer's attention it is what core.model.cache.View is to a pass over some positions, without a store.
    """

    place_W: Tensor
    mask: Tensor

    @property
    def position_BW(self) -> None:
        return None

    def seen(self, keys_BGWP: Tensor, values_BGWP: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the pass."""
        return keys_BGWP, values_BGWP


def block_causal(length: int, block_length: int, device: torch.device) -> BlockMask:
    """A token sees its own block and those before it."""
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    return BlockMask(place_L, (block_L[:, None] >= block_L)[None, None])


def beside_clean(length: int, block_length: int, device: torch.device) -> BlockMask:
    """Noisy tokens, then the same sequence clean: a noisy token sees its own noisy block and the clean ones before it.

    Clean tokens see as in `block_causal`, and nothing noisy, so that one pass computes the conditionals of all blocks
    (BD3-LM, arXiv 2503.09573, Sec. 3.2 and App. B.6: block-diagonal, offset block-causal and block-causal masks).
    """
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    same_LL, before_LL = block_L[:, None] == block_L, block_L[:, None] > block_L
    noisy_LW = torch.cat([same_LL, before_LL], 1)
    clean_LW = torch.cat([torch.zeros_like(same_LL), same_LL | before_LL], 1)
    return BlockMask(place_L.repeat(2), torch.cat([noisy_LW, clean_LW])[None, None])


class SegmentMask(NamedTuple):
    """Attention mask of packed sequences: several texts in one, none of which sees another.

    mask: (B, 1, L, L) bool, True where a query sees a key. position_BW: int64, counted from 0 in every segment.
    """

    mask: Tensor
    position_BW: Tensor

    def seen(self, keys_BGLP: Tensor, values_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the pass: the mask says which count. As core.model.cache.View.seen."""
        return keys_BGLP, values_BGLP


def confine(segments_BL: Tensor, *, causal: bool) -> SegmentMask:
    """Let the tokens of a segment see one another. segments_BL: (B, L) int, equal for neighbours of one segment."""
    place_L, place_BL = torch.arange(segments_BL.shape[1], device=segments_BL.device), places(segments_BL)
    start_BL = place_L - place_BL
    mask_BLL = start_BL[:, :, None] == start_BL[:, None, :]
    if causal:
        mask_BLL = mask_BLL & (place_L[:, None] >= place_L)
    return SegmentMask(mask_BLL[:, None], place_BL)


def places(segments_BL: Tensor) -> Tensor:
    """Each token's place in its segment, from 0 on. Returns (B, L) int64."""
    place_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    begins_BL = torch.nn.functional.pad(segments_BL.diff(dim=1) != 0, (1, 0), value=True)
    return place_L - torch.where(begins_BL, place_L, 0).cummax(1).values
