"""A run's weights, read: one safetensors file of the whole model, whatever layout it was trained in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from core.config.run import RunConfig
from core.errors import UserError
from core.model.transformer import Denoiser, whole_name
from core.records import run_record
from core.records.fingerprints import STAGE
from core.records.run_record import FILE_NAME, RunRecord
from core.runtime.paths import expanded
from core.training.checkpoint_files import STAGES, WEIGHTS
from core.training.checks import find_run


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
    return (
        run_record.read(stage_folder(folder, name) / FILE_NAME) if name is not None and name.startswith(STAGE) else None
    )


def load_weights(denoiser: Denoiser, path: str) -> None:
    """Read a model's weights: of experts only those that this rank holds."""
    with safe_open(path, framework="pt") as weights, torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            held = getattr(parameter, "held", slice(None))
            parameter.copy_(weights.get_slice(whole_name(name, parameter))[held])
        for name, buffer in denoiser.named_buffers():
            buffer.copy_(weights.get_tensor(name))
