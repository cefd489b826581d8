"""Which positions may see which, where attention is neither over all of a sequence nor causal: block after block.

Shapes: L positions, W tokens of a pass: L, or 2 L where noisy tokens stand beside their clean selves.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sight(NamedTuple):
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


def block_causal(length: int, block_length: int, device: torch.device) -> Sight:
    """A token sees its own block and those before it."""
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    return Sight(place_L, (block_L[:, None] >= block_L)[None, None])


def beside_clean(length: int, block_length: int, device: torch.device) -> Sight:
    """Noisy tokens, then the same sequence clean: a noisy token sees its own noisy block and the clean ones before it.

    Clean tokens see as in `block_causal`, and nothing noisy, so that one pass computes the conditionals of all blocks
    (BD3-LM, arXiv 2503.09573, Sec. 3.2 and App. B.6: block-diagonal, offset block-causal and block-causal masks).
    """
    place_L = torch.arange(length, device=device)
    block_L = place_L.div(block_length, rounding_mode="floor")
    same_LL, before_LL = block_L[:, None] == block_L, block_L[:, None] > block_L
    noisy_LW = torch.cat([same_LL, before_LL], 1)
    clean_LW = torch.cat([torch.zeros_like(same_LL), same_LL | before_LL], 1)
    return Sight(place_L.repeat(2), torch.cat([noisy_LW, clean_LW])[None, None])
