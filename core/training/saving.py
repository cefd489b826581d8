"""A run's weights, written: one safetensors file of the whole model, whatever layout it was trained in."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.config.run import RunConfig
from core.records import fencing
from core.runtime.ranks import Ranks
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.checkpoint_files import WEIGHTS
from core.training.module import MaskedDiffusion
from core.training.strategy import whole_weights

log = logging.getLogger(__name__)


def save_weights(
    module: MaskedDiffusion,
    config: RunConfig,
    folder: Path,
    ranks: Ranks,
    name: str = WEIGHTS,
    said: Callable[[Mapping[str, Tensor]], dict[str, str]] | None = None,
) -> str | None:
    """Write the whole model as one safetensors file, whatever layout it is in; every rank must call it.

    said: what the file's header tells of the weights. A reader sees the old file or the new one. Waits while the disk is
    full. Raises FencedOffError once another process has taken the run over.
    Returns the file's sha256 on rank 0; None elsewhere, or where there was never room.
    """
    if config.trainer.strategy == "deepspeed":
        weights = whole_weights(module.denoiser, config.deepspeed.stage)
    else:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.denoiser.state_dict().items()}
    if ranks.rank > 0:
        return None
    partial, told = fencing.partial_of(folder / name), said(weights) if said else None

    def save(again: bool) -> str:
        try:
            save_file(weights, partial, metadata=told)
            partial.chmod(0o644)  # the library makes it the owner's alone
            with partial.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            fencing.move_in(partial, folder / name)
            return content
        finally:
            partial.unlink(missing_ok=True)

    try:
        return Patience.of_environment().call(save, no_space)
    except OutOfPatienceError as error:  # what was measured is worth recording without them
        log.error("%s is not kept: %s", folder / name, error)
        return None


def content_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights, by which a file's header can say what the file held when it was written."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(f"{name} {weights[name].dtype} {list(weights[name].shape)}\0".encode())
        found.update(weights[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
