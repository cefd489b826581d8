"""`ablate import hf` and `ablate export --format hf`: weights from and to Hugging Face folders."""

import argparse
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from ablations.cli.commands import console
from core.config import ModelConfig, ObjectiveConfig, RunConfig, TrainerConfig, to_yaml
from core.errors import UserError
from core.interchange.folders import check_empty, find, read_config
from core.interchange.layouts import auxiliary_loss, ignored, layout_of
from core.model.size import count
from core.records import write_atomically
from core.settings import load as load_config
from core.training.saved import WEIGHTS

if TYPE_CHECKING:
    import torch

    from core.model.transformer import Denoiser


def run_import(arguments: argparse.Namespace) -> int:
    """A Hugging Face folder as config.yaml and model.safetensors of this project."""
    source: Path = arguments.path
    target: Path = arguments.to or arguments.out / "imported" / source.resolve().name
    if (target / WEIGHTS).exists():
        raise UserError(f"{target} holds weights already: name another folder with --to")
    found = find(source, arguments.mask_id)
    if found.model.mask_id is None and not found.model.causal:
        raise UserError(f"{source / 'config.json'} names no mask token: give its id by --mask-id N")
    from safetensors.torch import save_file  # torch, which mistakes are refused without

    from core.interchange.huggingface import load, stored_types

    dtype = dtype_of(arguments.dtype)
    denoiser = load(source, dtype, arguments.mask_id)
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "config.yaml", to_yaml(_run_config(denoiser.config, target / WEIGHTS)))
    save_file(denoiser.state_dict(), target / WEIGHTS)
    size = count(denoiser.config)
    out = console()
    said = read_config(source)
    out.print(f"{layout_of(said)}: {size.total:,} parameters, {size.active:,} active")
    notes = [*ignored(said), _types(denoiser), _rounded(stored_types(found), denoiser)]
    for line in filter(None, notes):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"config: {target / 'config.yaml'}", markup=False, soft_wrap=True)
    out.print(f"weights: {target / WEIGHTS}", markup=False, soft_wrap=True)
    out.print(f"train it on: ablate train {shlex.quote(str(target / 'config.yaml'))}", markup=False, soft_wrap=True)
    return 0


def _types(denoiser: "Denoiser") -> str:
    """Which types the weights have, where they have more than one."""
    count = Counter(short_type(weight.dtype) for weight in denoiser.parameters())
    return "" if len(count) == 1 else f"types: {', '.join(f'{n} weights in {t}' for t, n in count.most_common())}"


def _rounded(stored: "Mapping[str, torch.dtype]", denoiser: "Denoiser") -> str:
    """Which weights have lost digits, or range."""
    import torch

    lost = [
        f"{name} ({short_type(stored[name])})"
        for name, weight in denoiser.named_parameters()
        if torch.promote_types(stored[name], weight.dtype) != weight.dtype
    ]
    return f"rounded: {len(lost)} weights, such as {lost[0]}" if lost else ""


def short_type(dtype: "torch.dtype") -> str:
    """A data type's name as the options have it: fp32, bf16."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def dtype_of(name: str | None) -> "torch.dtype | None":
    """A data type by its name; None = as weights are stored."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}[name]


def _run_config(model: ModelConfig, weights: Path) -> RunConfig:
    objective = ObjectiveConfig(kind="autoregressive" if model.causal else "masked_diffusion")
    trainer = TrainerConfig(initial_weights=str(weights.resolve()))
    return RunConfig(model=model, objective=objective, trainer=trainer)


def export_run(folder: Path, target: Path) -> str:
    """Write a run's trained weights as a Hugging Face folder; returns what there is to say of it.

    Raises UserError when the folder holds no finished run, and for a model that no Hugging Face class can say.
    """
    for name in ("config.yaml", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name the folder of a finished run")
    config = load_config(folder / "config.yaml")
    check_empty(target, config.model)
    weight = config.objective.load_balancing_weight
    from core.interchange.huggingface import save

    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        save(config.model, weights.get_tensor, target, load_balancing_weight=weight)
    line = f"{read_config(target)['architectures'][0]}: {target}"
    return "\n".join(filter(None, [line, auxiliary_loss(config.model, weight)]))
