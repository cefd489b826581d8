"""train(config) -> RunRecord: the only way in."""

import logging
import math
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file

from core import records
from core.config import ModelConfig, RunConfig, config_hash, to_dict, to_yaml
from core.data.corpora import Corpus
from core.data.corpora import load as load_corpus
from core.data.module import MaskedTextModule
from core.errors import UserError
from core.model.size import count, training_flops
from core.model.transformer import Denoiser
from core.provenance import describe
from core.records import RunRecord
from core.training.callbacks import Recorder, TrainingDivergedError
from core.training.module import MaskedDiffusion

WEIGHTS = "model.safetensors"


def check(config: RunConfig) -> None:
    """Refuse, before anything is trained, what would fail later.

    Raises UserError for a corpus that is unknown, missing or too small, a vocabulary that its tokens exceed, or an
    accelerator that this machine lacks, or initial weights that are absent, damaged or of another shape.
    """
    check_vocabulary(config, load_corpus(config.data))
    if config.trainer.initial_weights:
        check_weights(config.model, config.trainer.initial_weights)
    if config.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=cuda, but torch sees no CUDA device here: use auto or cpu")


def check_vocabulary(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a corpus whose tokens the model has no rows for, uses as its mask, or doesn't mark responses of."""
    model, vocabulary, name = config.model, corpus.vocabulary, config.data.corpus
    if model.vocab_size < vocabulary.size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is too small for the {vocabulary.size} token ids of data.corpus={name}: "
            f"use {vocabulary.size} or more"
        )
    masks = config.objective.kind != "autoregressive"
    if masks and model.mask_id is not None and model.mask_id < vocabulary.size and model.mask_id != vocabulary.mask:
        right = vocabulary.size if vocabulary.mask is None else vocabulary.mask
        raise UserError(f"model.mask_id={model.mask_id} is a token of data.corpus={name}: use model.mask_id={right}")
    if config.objective.kind == "sft" and corpus.train_maskable_T is None:
        raise UserError(
            f"objective.kind=sft needs responses, and data.corpus={name} marks none: use instructions:FILE.jsonl"
        )


def check_weights(model: ModelConfig, path: str) -> None:
    """Refuse a weights file that doesn't hold exactly the model's tensors. Only the file's header is read."""
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in Denoiser(model).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"trainer.initial_weights={path} can't be read as safetensors: {error}") from None
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"trainer.initial_weights={path} doesn't fit the model: {name} is {found.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} in the config"
            )


def train(
    config: RunConfig,
    folder: Path,
    *,
    loggers: Sequence[Logger] = (),
    study: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Train one run and leave its record in `folder`: record.json, and beside it config.yaml and the final weights.

    A failure at work gives a record with status "failed" and a reason (and traceback.txt beside it). A mistake in the
    config raises UserError before training; an interruption passes through and leaves no record.
    """
    check(config)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_atomically(folder / "config.yaml", to_yaml(config))
    device, corpus = torch.device("cuda" if _uses_cuda(config) else "cpu"), load_corpus(config.data)
    facts: dict[str, Any] = {
        "run_hash": config_hash(config),
        "arm_hash": config_hash(config, with_seed=False),
        "seed": config.seed,
        "config": to_dict(config),
        "parameters": vars(count(config.model)),
        "data_fingerprint": corpus.fingerprint,
        "provenance": describe(device),
        "study": dict(study or {}),
        "started_at": _now(),
    }
    started = time.perf_counter()
    recorder = Recorder(config, floor=MaskedTextModule(config).floor(), bytes_per_token=corpus.bytes_per_token)
    try:
        measured = _fit(config, folder, recorder, loggers)
        record = RunRecord(status="complete", **facts, **measured, **_seen(recorder, started))
    except Exception as error:
        records.write_atomically(folder / "traceback.txt", traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        record = RunRecord(status="failed", reason=reason, **facts, **_seen(recorder, started))
    records.write(record, folder)
    return record


def _fit(config: RunConfig, folder: Path, recorder: Recorder, loggers: Sequence[Logger]) -> dict[str, Any]:
    module, data = MaskedDiffusion(config), MaskedTextModule(config)
    if config.trainer.initial_weights:
        load_model(module.denoiser, config.trainer.initial_weights)
    trainer = _trainer(config, folder, [recorder], loggers)
    began = time.perf_counter()
    trainer.fit(module, data)
    training_s = time.perf_counter() - began
    # Lightning validates on multiples only; the final model's numbers are the ones that count.
    if not recorder.load_steps or recorder.load_steps[-1] != config.trainer.steps:
        trainer.validate(module, data, verbose=False)
    if not math.isfinite(recorder.validation["val/nelbo"][-1]):
        raise TrainingDivergedError(f"the NELBO on validation is not finite at step {config.trainer.steps}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.denoiser.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    rate = recorder.tokens / training_s
    final = {name: column[-1] for name, column in recorder.validation.items() if name not in ("step", "tokens")}
    return {
        "metrics": {**final, "train/nelbo": recorder.curve["train/nelbo"][-1], "train/tokens_per_second": rate},
        "tokens_per_second": rate,
        "flops": training_flops(config),
    }


def _trainer(
    config: RunConfig, folder: Path, callbacks: list[lightning.Callback], loggers: Sequence[Logger]
) -> lightning.Trainer:
    # Lightning's advice (more dataloader workers, a GPU that is there but unused) doesn't fit runs that are packed
    # onto a share of the cores on purpose.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", module=r"lightning\.pytorch.*", category=category)
    every = config.trainer.validate_every
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cuda" if _uses_cuda(config) else "cpu",
        devices=1,
        precision="bf16-mixed" if config.trainer.precision == "bf16" else "32-true",
        max_steps=config.trainer.steps,
        val_check_interval=every or config.trainer.steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        callbacks=callbacks,
        logger=list(loggers) or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=True,
    )


def seconds_per_step(config: RunConfig, steps: int = 6) -> float:
    """Median wall time of a training step on this machine as it is now, after two steps of warm-up."""
    module, data = MaskedDiffusion(config), MaskedTextModule(config)
    device = torch.device("cuda" if _uses_cuda(config) else "cpu")
    module.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    batches, times = data.train_dataloader(), []
    for step in range(steps + 2):
        began = time.perf_counter()
        batch = module.transfer_batch_to_device(batches.batch(step), device, 0)
        module.training_step(batch, step)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[steps // 2]


def _seen(recorder: Recorder, started: float) -> dict[str, Any]:
    return {
        "curve": recorder.curve,
        "validation": recorder.validation,
        "expert_load": {"step": recorder.load_steps, "load": recorder.load_TLE},
        "wall_time_s": time.perf_counter() - started,
        "finished_at": _now(),
    }


def _uses_cuda(config: RunConfig) -> bool:
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
