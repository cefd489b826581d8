"""The grid over which decoding is timed."""

from dataclasses import dataclass

from core.diffusion.sampling import Sampling
from core.errors import UserError


@dataclass(frozen=True)
class Cell:
    """One point of the grid: responses of a length in blocks, a batch, and how many tokens a call fixes."""

    length: int
    block_length: int
    batch: int
    tokens_per_call: int

    @property
    def settings(self) -> Sampling:
        return Sampling(
            length=self.length, block_length=self.block_length, steps=max(1, self.length // self.tokens_per_call)
        )

    def check(self) -> None:
        """Refuse a cell where the blocks don't divide the length, or its calls don't divide over the blocks: LLaDA's loop
        needs both. Raises UserError."""
        blocks, steps = self.length // self.block_length, self.settings.steps or 1
        if steps % blocks:
            raise UserError(
                f"length={self.length} at {self.tokens_per_call} tokens a call takes {steps} calls, which don't divide over "
                f"{blocks} blocks of block_length={self.block_length}: use other lengths"
            )
