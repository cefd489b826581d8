"""Compute type of a layer: autocast's, or one that the layer requires.

The meta device, on which shapes alone are computed, knows no autocast.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def computed_in(x: Tensor) -> torch.dtype:
    """The type that matmuls of x are computed in: autocast's where it is on, else x's own."""
    device = x.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, what is computed on x's device keeps its types."""
    device = x.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
