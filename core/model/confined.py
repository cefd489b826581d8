"""Attention confined to segments: several texts in one sequence, none of which sees another.

Shapes: B sequences of L positions, G key and value heads, P head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Confined(NamedTuple):
    """What attention sees in a pass over packed sequences.

    mask: (B, 1, L, L) bool, True where a query sees a key. position_BW: int64, counted from 0 in every segment.
    """

    mask: Tensor
    position_BW: Tensor

    def seen(self, keys_BGLP: Tensor, values_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the pass: the mask says which count. As core.model.cache.View.seen."""
        return keys_BGLP, values_BGLP


def confine(segments_BL: Tensor, *, causal: bool) -> Confined:
    """Let the tokens of a segment see one another. segments_BL: (B, L) int, equal for neighbours of one segment."""
    place_L, place_BL = torch.arange(segments_BL.shape[1], device=segments_BL.device), places(segments_BL)
    start_BL = place_L - place_BL
    mask_BLL = start_BL[:, :, None] == start_BL[:, None, :]
    if causal:
        mask_BLL = mask_BLL & (place_L[:, None] >= place_L)
    return Confined(mask_BLL[:, None], place_BL)


def places(segments_BL: Tensor) -> Tensor:
    """Each token's place in its segment, from 0 on. Returns (B, L) int64."""
    place_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    begins_BL = torch.nn.functional.pad(segments_BL.diff(dim=1) != 0, (1, 0), value=True)
    return place_L - torch.where(begins_BL, place_L, 0).cummax(1).values
