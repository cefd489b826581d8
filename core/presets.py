"""Configs by name: what an ablation starts from."""

import difflib

from core.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from core.errors import UserError

PRESETS: dict[str, RunConfig] = {
    # The LLaDA-MoE shape at a size that one CPU core trains in about ten seconds: all layers MoE, top-2 of 8.
    "tiny": RunConfig(
        model=ModelConfig(hidden_size=96, num_layers=2, num_heads=3, head_dim=32, expert_width=48),
        data=DataConfig(sequence_length=64, validation_sequences=256),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        trainer=TrainerConfig(steps=400, batch_size=16, validate_every=50),
    ),
    "proxy": RunConfig(
        model=ModelConfig(
            hidden_size=256, num_layers=8, num_heads=4, head_dim=64, num_experts=16, top_k=2, expert_width=256
        ),
        data=DataConfig(sequence_length=256, validation_sequences=512),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        trainer=TrainerConfig(steps=4000, batch_size=64, validate_every=500, log_every=50),
    ),
}


def preset(name: str) -> RunConfig:
    """The config of that name. Raises UserError that names the nearest known ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3) or list(PRESETS)
        raise UserError(f"unknown preset '{name}': did you mean {' or '.join(near)}?")
    return PRESETS[name]
