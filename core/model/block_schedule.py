"""Block diffusion: sequences generated block after block, each by diffusion given those before it, and how long blocks are.

log p(x) = sum over blocks k of log p(x_k | x_<k), each term bounded as in core.diffusion.objectives with the earlier blocks
clean (BD3-LM, arXiv 2503.09573, Eq. 7): the NELBO is the sum of the blocks' bounds. All blocks share a sequence's timestep
and its masks (as LLaDA2.0's loss does, arXiv 2512.15745), so that arms of any block length meet the same ones. In blocks of
one token the bound is the autoregressive likelihood, in one block of all the plain masked-diffusion bound.
"""

from collections.abc import Iterator

from core.config.run import RunConfig


def block_length_at(config: RunConfig, step: int) -> int | None:
    """The block length that a training step learns at; None without block diffusion."""
    final, length, objective = config.model.block_length, config.data.sequence_length, config.objective
    if final is None or objective.block_schedule == "constant":
        return final
    steps, up, down = config.trainer.steps, _rising(1, length), _rising(final, length)[::-1]
    rise, fall = round(objective.block_warmup * steps), round(objective.block_decay * steps)
    if step < rise and up:
        return up[step * len(up) // rise]
    if step >= steps - fall and down:
        return down[min((step - (steps - fall)) * len(down) // fall, len(down) - 1)]
    return length


def block_shares(config: RunConfig) -> Iterator[tuple[int | None, float]]:
    """The block lengths of a training, each with the share of the steps that learn at it; they sum to 1."""
    final, length, objective = config.model.block_length, config.data.sequence_length, config.objective
    if final is None or objective.block_schedule == "constant":
        yield final, 1.0
        return
    for sizes, share in (
        (_rising(1, length), objective.block_warmup),
        (_rising(final, length), objective.block_decay),
    ):
        yield from ((size, share / max(1, len(sizes))) for size in sizes or [length])
    yield length, 1.0 - objective.block_warmup - objective.block_decay


def _rising(first: int, length: int) -> list[int]:
    """first, twice that, and so on, as long as it is shorter than the whole."""
    sizes = []
    while first < length:
        sizes.append(first)
        first *= 2
    return sizes
