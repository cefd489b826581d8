"""A stack of the released model's layers on one device beside the planner: time and peak of a forward and backward pass."""

import gc
import statistics
import time
from dataclasses import dataclass, replace

import torch

from core.capacity.activations import activations
from core.capacity.assumptions import DEFAULT
from core.capacity.clusters import Cluster, Device
from core.capacity.layouts import Layout
from core.capacity.timing import step_time
from core.config.presets import preset
from core.config.run import RunConfig
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.model.flops import flops_per_token
from core.training.module import MaskedDiffusion

SEQUENCES = (1, 2, 4)


@dataclass(frozen=True)
class Cell:
    """One micro-batch. seconds: median of a pass in which half of the tokens are masked; peak: bytes beyond weights and
    gradients where all are. `planned_`: the same on paper."""

    sequences: int
    checkpointing: bool
    seconds: float
    planned_seconds: float
    peak: int
    planned_peak: int
    mfu: float


def config_of(layers: int, sequences: int, checkpointing: bool, name: str = "llada_moe_7b_a1b") -> RunConfig:
    """The released model with fewer layers, in bf16, sequences of its own length a step."""
    base = preset(name)
    trainer = replace(
        base.trainer, batch_size=sequences, accumulate=1, precision="bf16", activation_checkpointing=checkpointing
    )
    return replace(base, model=replace(base.model, num_layers=layers), trainer=trainer)


def measure(layers: int, rounds: int, device: str, like: Device, name: str = "llada_moe_7b_a1b") -> list[Cell]:
    """Every micro-batch, with activation checkpointing and without. like: the device as the planner knows it."""
    module = MaskedDiffusion(config_of(layers, 1, False, name)).bfloat16().to(device)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return [
        _cell(module, config_of(layers, sequences, again, name), rounds, device, like)
        for again in (False, True)
        for sequences in SEQUENCES
    ]


def _cell(module: MaskedDiffusion, config: RunConfig, rounds: int, device: str, like: Device) -> Cell:
    again = config.trainer.activation_checkpointing
    module.denoiser.recompute_layers = again
    layout = Layout(stage=1, expert_parallel=1, micro_batch=config.trainer.batch_size, accumulate=1,
                    activation_checkpointing=again)  # fmt: skip
    planned = step_time(config, layout, Cluster(1, like, 1))
    active = activations(
        config, layout.micro_batch, 1, again, imbalance=DEFAULT.imbalance, masked_share=DEFAULT.masked_share
    )
    half, full = _batch(config, device, 0.5), _batch(config, device, 1.0)
    module.training_step(half, 0)["loss"].backward()  # warm
    peak = _peak(module, full, device)
    seconds = []
    for _ in range(rounds):
        _wait(device)
        began = time.perf_counter()
        module.training_step(half, 0)["loss"].backward()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    took = statistics.median(seconds)
    flops = flops_per_token(config) * config.tokens_per_step
    return Cell(
        layout.micro_batch, again, took, planned.computed, peak,
        max(active.kept + active.ends + active.loss, active.kept + active.layer),
        flops / took / like.flops,
    )  # fmt: skip


def _batch(config: RunConfig, device: str, share: float) -> Batch:
    """Random tokens, a share of each sequence masked."""
    size, length = config.trainer.batch_size, config.data.sequence_length
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(config.model.vocab_size - 1, (size, length), generator=generator)
    masked_BL = torch.rand(size, length, generator=generator).argsort(1) < round(share * length)
    masking = Masking(
        masked_BL, torch.full((size,), share), torch.full((size,), 1 / share), torch.full((size,), length)
    )
    made = Batch.of(tokens_BL, masking)
    moved = Masking(*(part.to(device) for part in made.masking))
    return Batch(made.tokens_BL.to(device), moved, made.index_M.to(device), made.router_timestep_B.to(device))


def _peak(module: MaskedDiffusion, batch: Batch, device: str) -> int:
    if device != "cuda":
        return 0
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    module.training_step(batch, 0)["loss"].backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def table(cells: list[Cell]) -> list[str]:
    """Markdown: seconds, model FLOPs utilisation and peak, each beside what the planner says."""
    head = ("sequences", "ms, measured / planned", "MFU", "peak beyond weights and gradients, GB, measured / planned")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in cells:
        again = ", checkpointed" if one.checkpointing else ""
        time_ms = f"{1e3 * one.seconds:.1f} / {1e3 * one.planned_seconds:.1f} = {one.seconds / one.planned_seconds:.2f}"
        peak = f"{one.peak / 1e9:.2f} / {one.planned_peak / 1e9:.2f} = {one.peak / one.planned_peak:.3f}"
        lines.append(f"| {one.sequences}{again} | {time_ms} | {one.mfu:.1%} | {peak} |")
    return lines
