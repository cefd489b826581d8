"""Refusals of probes and timings that can't be made as asked. Imports none of the libraries that compute."""

from dataclasses import dataclass, replace

from core.config.run import RunConfig
from core.diffusion.sampling import Sampling
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


@dataclass(frozen=True)
class Cell:
    """A point of the timed grid: responses of a length in blocks, a batch, and how many tokens a call fixes."""

    length: int
    block_length: int
    batch: int
    tokens_per_call: int

    @property
    def settings(self) -> Sampling:
        steps = max(1, self.length // self.tokens_per_call)
        return Sampling(length=self.length, block_length=self.block_length, steps=steps)

    def check(self) -> None:
        """Refuse a cell where the blocks don't divide the length, or its calls don't divide over the blocks: LLaDA's loop
        needs both. Raises UserError."""
        blocks, steps = self.length // self.block_length, self.settings.steps or 1
        if steps % blocks:
            raise UserError(
                f"length={self.length} at {self.tokens_per_call} tokens a call takes {steps} calls, which don't divide over "
                f"{blocks} blocks of block_length={self.block_length}: use other lengths"
            )
