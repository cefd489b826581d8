"""Named random streams: what makes arms comparable.

Every random choice of a run (weights, data order, timesteps, masks, validation masks) is drawn from a stream named
after what it is for, never from a shared global generator. Arms of one seed therefore meet the same numbers wherever
they ask the same question: common random numbers, whatever else differs between them.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def _entropy(seed: int, names: tuple[str | int, ...]) -> int:
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1  # torch takes 63 bits


def torch_stream(seed: int, *names: str | int, device: "str | torch.device" = "cpu") -> "torch.Generator":
    """A generator for the stream of that name; on a CPU the same name gives the same numbers on every machine."""
    import torch  # a second, which whoever only plans or counts can do without

    return torch.Generator(device).manual_seed(_entropy(seed, names))


def numpy_stream(seed: int, *names: str | int) -> "np.random.Generator":
    """A NumPy generator for the stream of that name."""
    import numpy as np  # a tenth of a second, which a refusal can do without

    return np.random.default_rng(_entropy(seed, names))
