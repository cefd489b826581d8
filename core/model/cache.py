"""Keys and values that outlive a pass, and passes over some positions of a sequence only.

Shapes: B sequences, L positions, of which W are in a pass; G key and value heads, P head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from core.config.model import ModelConfig


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
        return torch.nn.functional.pad(x_BGWP, (0, 0, 0, self.length - x_BGWP.shape[2]))


class View(NamedTuple):
    """One layer's view of the cache in a pass: its store, the pass's positions, and which keys: (B, 1, W or 1, extent)."""

    store: Store
    position_BW: Tensor | None
    mask: Tensor | None
    extent: int

    def seen(self, keys_BGWP: Tensor, values_BGWP: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the pass; return all that it may see, (B, G, extent, P)."""
        self.store.update(keys_BGWP, values_BGWP, self.position_BW)
        return self.store.keys_BGLP[:, :, : self.extent], self.store.values_BGLP[:, :, : self.extent]


class Window(NamedTuple):
    """Positions of a pass, and the positions that they attend to.

    position_BW: int64, each sequence's own; None: the first W, in order. visible: bool, which of the first `extent`
    positions may be seen, (B, extent), or by which of the pass, (B, W, extent); None: all. stores: one for each layer; the
    pass reads and updates them.
    """

    position_BW: Tensor | None
    visible: Tensor | None
    extent: int
    stores: list[Store]

    def at(self, layer: int) -> View:
        """One layer's part of it."""
        rows = None if self.visible is None else self.visible if self.visible.ndim == 3 else self.visible[:, None]
        mask = None if rows is None else rows[:, None]
        return View(self.stores[layer], self.position_BW, mask, self.extent)


def new_stores(model: ModelConfig, length: int) -> list[Store]:
    """Room for sequences of a length, for each layer."""
    return [Store(length) for _ in range(model.num_layers)]
