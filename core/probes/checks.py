"""Runs that can't be probed as it was asked, refused without the libraries that compute."""

from dataclasses import replace

from core.config.run import RunConfig
from core.errors import UserError


def check_probe(config: RunConfig, timesteps: int) -> None:
    """Refuse what has no routing by timestep."""
    if not config.model.num_experts:
        raise UserError("the model is dense (model.num_experts=0): it routes nothing")
    if config.objective.traits.causal:
        raise UserError(f"objective.kind={config.objective.kind} masks nothing and has no timesteps")
    if config.model.block_length is not None:
        raise UserError(
            f"model.block_length={config.model.block_length} has clean tokens routed beside the noisy ones: not probed"
        )
    if timesteps < 2:
        raise UserError(f"a dependence on the timestep needs at least 2 timesteps, not {timesteps}")


def at_length(config: RunConfig, length: int, sequences: int) -> RunConfig:
    """The run's config on held-out sequences of a length. Raises UserError for one that it can't have."""
    if length < 2 or sequences < 1:
        raise UserError(f"lengths must be at least 2 and sequences at least 1, not {length} and {sequences}")
    if length > config.model.max_positions:
        raise UserError(f"length {length} exceeds model.max_positions={config.model.max_positions}")
    data = replace(config.data, sequence_length=length, validation_sequences=sequences, variable_length_share=0.0)
    return replace(config, data=data)
