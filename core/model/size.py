"""What a model costs, counted without allocating it."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from core.config import ModelConfig, RunConfig
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
    attention over the whole length; causal attention is half of it). The output head is counted for every token.
    """
    model = config.model
    attention = (
        (6 if model.causal else 12) * model.num_layers * model.num_heads * model.head_dim * config.data.sequence_length
    )
    return 6.0 * count(model).active + attention


def training_flops(config: RunConfig) -> float:
    """FLOPs of the whole run, validation excluded."""
    return flops_per_token(config) * config.tokens_per_step * config.trainer.steps
