"""What a model costs, counted without allocating it."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from core.config import ModelConfig, RunConfig
from core.diffusion.blocks import block_shares
from core.model.transformer import Denoiser


@dataclass(frozen=True)
class ModelSize:
    """Parameters: all of them, and those that one token meets (its k experts; the output head but not the embedding
    table, whose rows are looked up rather than multiplied; where the two are tied, that table counts once; not what a
    router multiplies by a sequence's timestep, once for all of its tokens)."""

    total: int
    active: int


@lru_cache(maxsize=512)
def count(config: ModelConfig) -> ModelSize:
    """Count parameters on the meta device; once for equal models, as a ladder has each of its on many budgets."""
    with torch.device("meta"):
        parameters = dict(Denoiser(config).named_parameters())
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    timed = sum(sizes[name] for name, parameter in parameters.items() if hasattr(parameter, "per_sequence"))
    total = sum(sizes.values())
    routed = sum(n for name, n in sizes.items() if ".experts." in name)
    idle = routed * (config.experts - config.experts_met) // max(1, config.experts)
    looked_up = 0 if config.tied_embeddings else sizes["embed.weight"]
    return ModelSize(total=total, active=total - idle - looked_up - timed)


def flops_per_token(config: RunConfig) -> float:
    """Training FLOPs per token, forward and backward: 6 per active weight, 12 H P L per layer for attention scores.

    Multiply-adds count 2; the backward pass costs twice the forward (arXiv 2001.08361, Sec. 2.1, with bidirectional
    attention over the whole length; causal attention is half of it). The output head is counted for every token. Block
    diffusion has every token beside its clean self, which meets all weights but the head, and each of the two sees its block
    and the blocks before it; where its schedule has blocks of the whole sequence it costs what plain masked diffusion does.
    Preferences (vrpo) have a reference, which is asked too: a third more.
    """
    model, length = config.model, config.data.sequence_length
    inner, active = model.num_layers * model.num_heads * model.head_dim, count(model).active
    if model.causal:
        return 6.0 * active + 6 * inner * length
    flops, body = 0.0, active - model.vocab_size * model.hidden_size
    for block, share in block_shares(config):
        inside = block is not None and block < length
        flops += share * (6.0 * (active + body * inside) + 12 * inner * (length + (block or 0) * inside))
    return flops * (4 / 3 if config.objective.kind == "vrpo" else 1)


def training_flops(config: RunConfig) -> float:
    """FLOPs of the whole run, validation excluded."""
    return flops_per_token(config) * config.tokens_per_step * config.trainer.steps
