"""LLaDA's published generation loop (ML-GSAI/LLaDA, generate.py; arXiv 2502.09992, Algorithms 4 and 5), written plainly.

It is what the sampler must agree with, and what it is timed against.
"""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def generate(
    model: Callable[[Tensor], Tensor],
    prompt_1P: Tensor,
    *,
    steps: int,
    length: int,
    block_length: int,
    mask_id: int,
    temperature: float = 0.0,
    guidance: float = 0.0,
    remasking: str = "low_confidence",
) -> Tensor:
    """One response, (1, P + length). model: tokens (B, L) to logits (B, L, V), of all positions at each call."""
    start = prompt_1P.shape[1]
    x = torch.full((1, start + length), mask_id, dtype=torch.long, device=prompt_1P.device)
    x[:, :start] = prompt_1P
    given = x != mask_id
    blocks = length // block_length
    for block in range(blocks):
        end = start + (block + 1) * block_length
        masks = int((x[:, end - block_length : end] == mask_id).sum())
        calls = steps // blocks
        for call in range(calls):
            masked = x == mask_id
            if guidance:
                blind = torch.where(given, mask_id, x)
                logits, blind_logits = model(torch.cat([x, blind])).chunk(2)
                logits = blind_logits + (guidance + 1) * (logits - blind_logits)
            else:
                logits = model(x)
            noise = (-torch.rand(logits.shape, dtype=torch.float64, device=x.device).log()) ** temperature
            drawn = (logits.double().exp() / noise).argmax(-1)
            if remasking == "low_confidence":
                confidence = logits.double().softmax(-1).gather(-1, drawn[..., None])[..., 0]
            else:
                confidence = torch.rand(drawn.shape, dtype=torch.float64, device=x.device)
            confidence[:, end:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            fixed = confidence[0].topk(masks // calls + (call < masks % calls)).indices
            x[0, fixed] = drawn[0, fixed]
    return x
