"""What a causal language model makes of text that another model wrote."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from core.diffusion.sampling import check_autoregressive
from core.model.transformer import Denoiser


@torch.inference_mode()
def continuation_nats(judge: Denoiser, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[float]:
    """-log p of each continuation given what stands before it, in nats over all of its tokens.

    before, after: token ids of the judge's own vocabulary, sequence by sequence; a sequence starts with eos. Raises
    UserError for a judge that isn't causal, and sequences that it has no positions for.
    """
    start, found = check_autoregressive(judge.config, before, max((len(each) for each in after), default=0)), []
    device = judge.embed.weight.device
    for prompt, continuation in zip(before, after, strict=True):
        tokens = torch.tensor([start, *prompt, *continuation], device=device)
        logits_LV = judge(tokens[None, :-1])[0][0, len(prompt) :].float()
        found.append(
            float(F.cross_entropy(logits_LV, tokens[1 + len(prompt) :], reduction="sum")) if len(continuation) else 0.0
        )
    return found
