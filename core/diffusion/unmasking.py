"""Unmasking: draws tokens from a prediction and chooses those that are fixed; pure functions of one network call.

Shapes: B sequences, W positions of the active block, M masked positions of the block over all sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.diffusion.decode_rules import DECODE_RULES


def draw_tokens(
    logits_MV: Tensor, temperature: float, generators: Sequence[torch.Generator], count_B: Sequence[int]
) -> Tensor:
    """A token for each position: argmax(logits + temperature * Gumbel noise), which at temperature 1 samples softmax(logits).

    The noise is drawn and added in float64: in less, its tail is cut and sampling is colder than it says (arXiv
    2409.02908). Each of the B sequences draws its count_B rows from a generator of its own, so that its tokens don't
    depend on who else is in the batch. Returns (M,) int64.
    """
    if temperature == 0:
        return logits_MV.argmax(-1)
    uniform_MV = _rows_of(generators, count_B, (logits_MV.shape[-1],))
    gumbel_MV = -uniform_MV.log().neg_().log_()
    return (logits_MV.double() + temperature * gumbel_MV).argmax(-1)


def score_positions(
    log_probs_MV: Tensor,
    tokens_M: Tensor,
    remasking: str,
    generators: Sequence[torch.Generator],
    count_B: Sequence[int],
) -> Tensor:
    """The scores by which positions are fixed, the highest first. remasking: a name in DECODE_RULES. Returns (M,) float64."""
    rule = DECODE_RULES[remasking].implementation
    return rule(log_probs_MV, tokens_M, lambda: _rows_of(generators, count_B, ()))


def _rows_of(generators: Sequence[torch.Generator], count_B: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """U[0, 1) numbers, count of each sequence's own. Returns (M, *shape) float64."""
    drawn = [
        torch.rand(count, *shape, generator=generator, dtype=torch.float64, device=generator.device)
        for generator, count in zip(generators, count_B, strict=True)
        if count
    ]
    return torch.cat(drawn)


def step_counts(masked_B: Tensor, steps: int) -> Tensor:
    """Tokens fixed per step, as equal as possible, the larger first (LLaDA's linear schedule). Returns (B, steps)."""
    more_BS = torch.arange(steps, device=masked_B.device) < (masked_B % steps)[:, None]
    return masked_B.div(steps, rounding_mode="floor")[:, None] + more_BS


def choose_count(score_BW: Tensor, masked_BW: Tensor, count_B: Tensor) -> Tensor:
    """The `count_B` masked positions of highest score, the first of equal ones. Returns (B, W) bool."""
    order_BW = score_BW.masked_fill(~masked_BW, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_BW = torch.empty_like(order_BW).scatter_(
        1, order_BW, torch.arange(order_BW.shape[1], device=order_BW.device).expand_as(order_BW)
    )
    return (rank_BW < count_B[:, None]) & masked_BW


def choose_confident(score_BW: Tensor, masked_BW: Tensor, threshold: float, low_threshold: float | None) -> Tensor:
    """The masked positions whose score is at least the threshold, and always the best one. Returns (B, W) bool.

    As in Fast-dLLM (arXiv 2505.22618). With a low threshold it is dInfer's hierarchical decoding (arXiv 2510.08666):
    the best of each run of neighbouring masks is fixed too if it reaches that, so that runs depend on each other less.
    """
    score_BW = score_BW.masked_fill(~masked_BW, -torch.inf)
    chosen_BW = masked_BW & (
        (score_BW >= threshold) | choose_count(score_BW, masked_BW, masked_BW.new_ones(len(masked_BW)))
    )
    if low_threshold is None:
        return chosen_BW
    starts_BW = masked_BW & ~torch.nn.functional.pad(masked_BW[:, :-1], (1, 0))
    run_BW = starts_BW.cumsum(1).masked_fill(~masked_BW, 0)
    best_BR = score_BW.new_full((len(score_BW), score_BW.shape[1] + 1), -torch.inf)
    best_BR = best_BR.scatter_reduce(1, run_BW, score_BW, "amax")
    return chosen_BW | (masked_BW & (score_BW == best_BR.gather(1, run_BW)) & (score_BW >= low_threshold))
