"""Pickles are read by an allow-list, also where a library asks for any."""

import contextlib
import importlib
from collections.abc import Iterator

import torch

from core.runtime.child_process import exported

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load heeds it, whatever it is told
# What DeepSpeed's checkpoints hold beside tensors and what torch allows by itself.
KNOWN = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)


@contextlib.contextmanager
def only_known_types() -> Iterator[None]:
    """Inside, torch.load makes nothing but tensors, plain values and the types above, and calls nothing else."""
    known = [getattr(importlib.import_module(module), name) for module, name in KNOWN]
    with exported(FORCED, "1"), torch.serialization.safe_globals(known):
        yield
