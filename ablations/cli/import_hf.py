"""`ablate import hf` and `ablate export --format hf`: weights from and to Hugging Face folders."""

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ablations.cli.terminal import console
from core.config.data import DataConfig
from core.config.loading import load as load_config
from core.config.model import ModelConfig
from core.config.objective import ObjectiveConfig
from core.config.run import RunConfig, to_yaml
from core.config.training import TrainerConfig
from core.data.tokenizers import load_tokenizer
from core.errors import UserError
from core.interchange.folders import TEMPLATE, TOKENIZER, check_empty, check_weights, copy_tokenizer, find, read_config
from core.interchange.layouts import Ids, auxiliary_loss, ignored, layout_of, load_balancing_weight
from core.model.flops import count
from core.records.run_record import write_atomically
from core.training.checkpoint_files import WEIGHTS

if TYPE_CHECKING:
    import torch

    from core.model.transformer import Denoiser  # loads torch


def run_import(arguments: argparse.Namespace) -> int:
    """A Hugging Face folder as config.yaml, model.safetensors and the tokenizer's files of this project."""
    source: Path = arguments.path
    target: Path = arguments.to or arguments.out / "imported" / source.resolve().name
    if target.exists() and not target.is_dir():
        raise UserError(f"--to {target} is no folder: name one that isn't there")
    for name in (WEIGHTS, "config.yaml"):
        if (target / name).exists():
            raise UserError(f"{target} holds a model already ({name}): name another folder with --to")
    ids = Ids(arguments.mask_id, arguments.eos_id)
    found = find(source, ids)
    _check_ids(source, found.model)
    # Torch, which mistakes are refused without.
    from core.interchange.huggingface import load, stored_types, write_tensors

    denoiser, said = load(source, dtype_of(arguments.dtype), ids), read_config(source)
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(denoiser.state_dict(), target / WEIGHTS)
    tokenizer, about = _tokenizer(source, target, found.model)
    config = _run_config(found.model, target / WEIGHTS, load_balancing_weight(said), tokenizer)
    write_atomically(target / "config.yaml", to_yaml(config))
    size = count(found.model)
    out = console()
    out.print(f"{layout_of(said)}: {size.total:,} parameters, {size.active:,} active")
    notes = [
        *ignored(said),
        _auxiliary(said),
        _types(denoiser),
        _rounded(stored_types(found), denoiser),
        _broken(denoiser),
    ]
    for line in filter(None, [*notes, *about]):
        out.unwrapped(line)
    out.unwrapped(f"config: {target / 'config.yaml'}")
    out.unwrapped(f"weights: {target / WEIGHTS}")
    out.unwrapped(f"train it on: ablate train {shlex.quote(str(target / 'config.yaml'))}")
    return 0


def _check_ids(source: Path, model: ModelConfig) -> None:
    if model.mask_id is None and not model.causal:
        raise UserError(f"{source / 'config.json'} names no mask token: give its id by --mask-id N")
    if model.eos_id is None and model.causal:
        raise UserError(
            f"{source / 'config.json'} names no end token, which sequences start with here: give its id by --eos-id N"
        )


def _tokenizer(source: Path, target: Path, model: ModelConfig) -> tuple[str, list[str]]:
    """Bring the model's own tokenizer along. Returns what data.tokenizer is to be, and what there is to say of it."""
    path = copy_tokenizer(source, target)
    if path is None:
        return "bytes", [
            f"no {TOKENIZER} in {source}: name the model's own by data.tokenizer=PATH before training on text"
        ]
    name, notes = str(path.resolve()), [f"tokenizer: {path}"]
    try:
        vocabulary = load_tokenizer(name).vocabulary
    except UserError as error:
        return "bytes", [f"the tokenizer can't be used: {error}"]
    if vocabulary.eos != model.eos_id:
        notes.append(
            f"the tokenizer's end token is {vocabulary.eos}, and config.json's is {model.eos_id}: set model.eos_id"
        )
    if (target / TEMPLATE).is_file():
        notes.append(f"its chat template, for conversations: data.chat_template={shlex.quote(str(target / TEMPLATE))}")
    return name, notes


def _auxiliary(said: Mapping[str, Any]) -> str:
    """The line on the load-balancing weight that an import takes from the class's own; empty where it has none."""
    weight = load_balancing_weight(said)
    if weight is None:
        return ""
    k = said.get("num_experts_per_tok")
    return f"objective.load_balancing_weight={weight:g}: router_aux_loss_coef times the {k} experts of a token"


def _types(denoiser: "Denoiser") -> str:
    """The line that counts weights by data type; empty where all have one."""
    count = Counter(short_type(weight.dtype) for weight in denoiser.parameters())
    return "" if len(count) == 1 else f"types: {', '.join(f'{n} weights in {t}' for t, n in count.most_common())}"


def _rounded(stored: "Mapping[str, torch.dtype]", denoiser: "Denoiser") -> str:
    """The line on weights that were rounded to a narrower data type; empty where none was."""
    import torch

    lost = [
        f"{name} ({short_type(stored[name])})"
        for name, weight in denoiser.named_parameters()
        if torch.promote_types(stored[name], weight.dtype) != weight.dtype
    ]
    return f"rounded: {len(lost)} weights, such as {lost[0]}" if lost else ""


def _broken(denoiser: "Denoiser") -> str:
    """The line on weights that hold NaN or Inf; empty where none does."""
    broken = [name for name, weight in denoiser.named_parameters() if not weight.isfinite().all()]
    return f"NaN or Inf: in {len(broken)} weights, such as {broken[0]}" if broken else ""


def short_type(dtype: "torch.dtype") -> str:
    """A data type's name as the options have it: fp32, bf16."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def dtype_of(name: str | None) -> "torch.dtype | None":
    """A data type by its name; None = as weights are stored."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}[name]


def _run_config(model: ModelConfig, weights: Path, load_balancing: float | None, tokenizer: str) -> RunConfig:
    kind = "autoregressive" if model.causal else "masked_diffusion"
    objective = ObjectiveConfig(kind=kind)
    if load_balancing is not None:
        objective = replace(objective, load_balancing_weight=load_balancing)
    trainer = TrainerConfig(initial_weights=str(weights.resolve()))
    return RunConfig(model=model, objective=objective, data=DataConfig(tokenizer=tokenizer), trainer=trainer)


def export_run(folder: Path, target: Path) -> str:
    """Write a run's trained weights as a Hugging Face folder; returns what there is to say of it.

    Raises UserError when the folder holds no finished run, and for a model that no Hugging Face class can say.
    """
    for name in ("config.yaml", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name the folder of a finished run")
    config = load_config(folder / "config.yaml")
    check_empty(target, config.model)
    check_weights(folder / WEIGHTS, config.model)
    weight = config.objective.load_balancing_weight
    from core.interchange.huggingface import save  # loads torch

    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        save(config.model, weights.get_tensor, target, load_balancing_weight=weight)
    if config.data.tokenizer != "bytes":
        copy_tokenizer(Path(os.path.expanduser(config.data.tokenizer)).parent, target)
    line = f"{read_config(target)['architectures'][0]}: {target}"
    return "\n".join(filter(None, [line, auxiliary_loss(config.model, weight)]))
