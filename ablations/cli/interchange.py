"""`ablate import hf` and `ablate export --format hf`: weights from and to Hugging Face folders."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from ablations.cli.commands import console
from core.config import ModelConfig, ObjectiveConfig, RunConfig, TrainerConfig, to_yaml
from core.errors import UserError
from core.interchange.folders import check_empty, find, read_config
from core.interchange.layouts import layout_of
from core.model.size import count
from core.records import write_atomically
from core.settings import load as load_config
from core.training.saved import WEIGHTS

if TYPE_CHECKING:
    import torch


def run_import(arguments: argparse.Namespace) -> int:
    """A Hugging Face folder as config.yaml and model.safetensors of this project."""
    source: Path = arguments.path
    target: Path = arguments.to or arguments.out / "imported" / source.resolve().name
    if (target / WEIGHTS).exists():
        raise UserError(f"{target} holds weights already: name another folder with --to")
    find(source)
    from safetensors.torch import save_file  # torch, which mistakes are refused without

    from core.interchange.huggingface import load

    denoiser = load(source, dtype_of(arguments.dtype))
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "config.yaml", to_yaml(_run_config(denoiser.config, target / WEIGHTS)))
    save_file(denoiser.state_dict(), target / WEIGHTS)
    size = count(denoiser.config)
    out = console()
    out.print(f"{layout_of(read_config(source))}: {size.total:,} parameters, {size.active:,} active")
    out.print(f"config: {target / 'config.yaml'}", markup=False, soft_wrap=True)
    out.print(f"weights: {target / WEIGHTS}", markup=False, soft_wrap=True)
    out.print(f"train it on: ablate train {shlex.quote(str(target / 'config.yaml'))}", markup=False, soft_wrap=True)
    return 0


def dtype_of(name: str | None) -> "torch.dtype | None":
    """A data type by its name; None = as weights are stored."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}[name]


def _run_config(model: ModelConfig, weights: Path) -> RunConfig:
    objective = ObjectiveConfig(kind="autoregressive" if model.causal else "masked_diffusion")
    trainer = TrainerConfig(initial_weights=str(weights.resolve()))
    return RunConfig(model=model, objective=objective, trainer=trainer)


def export_run(folder: Path, target: Path) -> str:
    """Write a run's trained weights as a Hugging Face folder; returns a line that says so.

    Raises UserError when the folder holds no finished run, and for a model that no Hugging Face class can say.
    """
    for name in ("config.yaml", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name the folder of a finished run")
    config = load_config(folder / "config.yaml")
    check_empty(target, config.model)
    from core.interchange.huggingface import save

    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        save(config.model, weights.get_tensor, target)
    return f"{read_config(target)['architectures'][0]}: {target}"
