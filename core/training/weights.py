"""A run's weights, written and read: one safetensors file of the whole model, whatever layout it was trained in."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.config.run import RunConfig
from core.errors import UserError
from core.model.transformer import Denoiser, whole_name
from core.records import fencing, run_record
from core.records.provenance import STAGE
from core.records.run_record import FILE_NAME, RunRecord
from core.runtime.paths import expanded, file_sha256
from core.runtime.ranks import Ranks
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.checkpoint_files import STAGES, WEIGHTS
from core.training.checks import find_run
from core.training.communication import whole_tensor

log = logging.getLogger(__name__)


def open_run(folder: Path, settings: Mapping[str, Any] | None = None) -> tuple[RunConfig, Denoiser]:
    """The config, with settings over it, and the trained network of a run's folder or an imported model's, on the CPU.

    Raises UserError for a folder without a config or weights, and for weights of another shape.
    """
    config = find_run(folder, settings)
    with torch.device("meta"):
        denoiser = Denoiser(config.model)
    denoiser = denoiser.to_empty(device="cpu")
    load_weights(denoiser, str(folder / WEIGHTS))
    return config, denoiser.eval()


def stage_folder(folder: Path, name: str) -> Path:
    """Folder of the first stage of a run in `folder` that trainer.initial_weights names as "stage:HASH"."""
    return folder / STAGES / name.removeprefix(STAGE)


def starting_weights(config: RunConfig, folder: Path) -> str | None:
    """The file that a run in `folder` starts from. Raises UserError for a first stage that isn't there."""
    name = config.trainer.initial_weights
    if name is None or not name.startswith(STAGE):
        return name and expanded(name)
    path = stage_folder(folder, name) / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"trainer.initial_weights={name} is the first stage of an ablation's recipe, and {path} isn't there: `ablate "
            "run` trains it; elsewhere name a model.safetensors"
        )
    return str(path)


def first_stage(config: RunConfig, folder: Path) -> RunRecord | None:
    """The record of a run's first stage in its folder; None where it has none. Raises as `run_record.read` does."""
    name = config.trainer.initial_weights
    if name is None or not name.startswith(STAGE):
        return None
    return run_record.read(stage_folder(folder, name) / FILE_NAME)


def load_weights(denoiser: Denoiser, path: str) -> None:
    """Read a model's weights: of experts only those that this rank holds."""
    with safe_open(path, framework="pt") as weights, torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            held = getattr(parameter, "held", slice(None))
            parameter.copy_(weights.get_slice(whole_name(name, parameter))[held])
        for name, buffer in denoiser.named_buffers():
            buffer.copy_(weights.get_tensor(name))


def save_weights(
    denoiser: Denoiser,
    config: RunConfig,
    folder: Path,
    ranks: Ranks,
    name: str = WEIGHTS,
    header: Callable[[Mapping[str, Tensor]], dict[str, str]] | None = None,
) -> str | None:
    """Write the whole model as one safetensors file, whatever layout it is in; every rank must call it.

    header: makes the file's header of the weights. A reader sees the old file or the new one. Waits while the disk is full.
    Raises FencedOffError once another process has taken the run over.
    Returns the file's sha256 on rank 0; None elsewhere, or where there was never room.
    """
    if config.trainer.strategy == "deepspeed":
        weights = _whole_weights(denoiser, config.deepspeed.stage)
    else:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    if ranks.rank > 0:
        return None
    partial, metadata = fencing.partial_of(folder / name), header(weights) if header else None

    def save(again: bool) -> str:
        try:
            save_file(weights, partial, metadata=metadata)
            partial.chmod(0o644)  # the library makes it the owner's alone
            content = file_sha256(partial)
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


def _whole_weights(denoiser: Denoiser, stage: int) -> dict[str, Tensor]:
    """The model's weights in fp32 from any layout, parameter by parameter; on rank 0, and empty elsewhere.

    Every rank must call it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights: dict[str, Tensor] = {}
    rank = dist.get_rank()
    for name, parameter in denoiser.named_parameters():
        value = parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)
        value = whole_tensor(parameter, value)
        if rank == 0:
            weights[whole_name(name, parameter)] = value.float().cpu().clone()
    if rank == 0:
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in denoiser.named_buffers()}
    return weights
