"""Parameters and FLOPs of a model, by arithmetic on its config."""

from dataclasses import dataclass
from functools import lru_cache

from core.config.model import ModelConfig
from core.config.run import RunConfig
from core.model.block_schedule import block_shares
from core.model.shapes import EXPERTS, layer_weights, outer_weights


@dataclass(frozen=True)
class ModelSize:
    """Parameters: all of them, and those that one token meets (its k experts; the output head but not the embedding
    table, whose rows are looked up rather than multiplied; where the two are tied, that table counts once; not what a
    router multiplies by a sequence's timestep, once for all of its tokens)."""

    total: int
    active: int


@lru_cache(maxsize=4096)
def count(config: ModelConfig) -> ModelSize:
    """Count parameters; once for equal models, as a ladder has each of its on many budgets."""
    sparse = len(config.sparse_layers)
    before, behind = outer_weights(config)
    total = idle = timed = 0
    for part, times in (
        ([*before, *behind], 1),
        (layer_weights(config, sparse=True) if sparse else (), sparse),
        (layer_weights(config, sparse=False) if sparse < config.num_layers else (), config.num_layers - sparse),
    ):
        learned = [weight for weight in part if not weight.buffer]
        total += times * sum(weight.elements for weight in learned)
        timed += times * sum(weight.elements for weight in learned if weight.per_sequence)
        routed = times * sum(weight.elements for weight in learned if EXPERTS in weight.name)
        idle += routed * (config.experts - config.experts_met) // max(1, config.experts)
    looked_up = 0 if config.tied_embeddings else before[0].elements
    return ModelSize(total=total, active=total - idle - looked_up - timed)


def flops_per_token(config: RunConfig) -> float:
    """Training FLOPs per token, forward and backward: 6 per active weight, 12 H P L per layer for attention scores.

    Multiply-adds count 2; the backward pass costs twice the forward (arXiv 2001.08361, Sec. 2.1, with bidirectional
    attention over the whole length; causal attention is half of it). The output head is counted for every token. Block
    diffusion has every token beside its clean self, which meets all weights but the head, and each of the two sees its block
    and the blocks before it; where its schedule has blocks of the whole sequence it costs what plain masked diffusion does.
    An objective's reference network is asked too: a third more.
    """
    model, length = config.model, config.data.sequence_length
    inner, active = model.num_layers * model.num_heads * model.head_dim, count(model).active
    if model.causal:
        return 6.0 * active + 6 * inner * length
    flops, body = 0.0, active - model.vocab_size * model.hidden_size
    for block, share in block_shares(config):
        inside = block is not None and block < length
        flops += share * (6.0 * (active + body * inside) + 12 * inner * (length + (block or 0) * inside))
    return flops * (4 / 3 if config.objective.traits.reference else 1)


def training_flops(config: RunConfig) -> float:
    """FLOPs of the whole run, validation excluded."""
    return flops_per_token(config) * config.tokens_per_step * config.trainer.steps
