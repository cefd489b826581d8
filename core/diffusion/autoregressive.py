"""The baseline that decoding by diffusion is compared with: one token after the other, with a cache of keys and values.

Shapes: B sequences of at most L tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.diffusion.sampler import lay_out, random_streams
from core.diffusion.sampling import Fixed, check_autoregressive
from core.diffusion.unmasking import draw_tokens
from core.model.attention import Window, new_stores
from core.model.transformer import Denoiser


def decode_autoregressive(
    denoiser: Denoiser,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cached: bool = True,
    streams: Sequence[int] | None = None,
) -> Iterator[Fixed]:
    """Decode `length` tokens after each prompt, telling each as it is fixed; sequences start with eos, as in training.

    cached: keep keys and values, so that a call computes one position of each sequence; else compute all again, with the
    same result. Random numbers as in `decode`. Raises UserError for a model that isn't causal and for too long a prompt.
    """
    start_id, device = check_autoregressive(denoiser.config, prompts, length), denoiser.embed.weight.device
    inputs_BL, end_B = lay_out([[start_id, *prompt] for prompt in prompts], length, 0, device)
    last_B, rows_B = end_B - length - 1, torch.arange(len(prompts), device=device)  # last: the newest token there is
    generators = random_streams(seed, range(len(prompts)) if streams is None else streams, device)
    network = _Causal(denoiser, inputs_BL, cached)
    for step in range(length):
        logits_BV = network.next(last_B).double()
        token_B = draw_tokens(logits_BV, temperature, generators, [1] * len(prompts))
        confidence_B = logits_BV.softmax(-1).gather(-1, token_B[:, None])[:, 0]
        last_B = last_B + 1
        inputs_BL[rows_B, last_B] = token_B
        yield Fixed(step, step, rows_B, last_B - 1, token_B, confidence_B)  # the start token is no part of a sequence


class _Causal:
    """A causal network over sequences that grow: they are written to from outside."""

    def __init__(self, denoiser: Denoiser, inputs_BL: Tensor, cached: bool) -> None:
        self.denoiser, self.inputs_BL, self.cached = denoiser, inputs_BL, cached
        self.stores = new_stores(denoiser.config, inputs_BL.shape[1])
        self.filled = False

    @torch.inference_mode()
    def next(self, last_B: Tensor) -> Tensor:
        """The logits (B, V) of the token after each sequence's last."""
        extent = int(last_B.max()) + 1
        if self.filled:
            even = bool((last_B == extent - 1).all())
            seen_BL = torch.arange(extent, device=last_B.device) <= last_B[:, None]
            window = Window(last_B[:, None], None if even else seen_BL, extent, self.stores)
            tokens_B1 = self.inputs_BL.gather(1, last_B[:, None])
            return self.denoiser.logits(self.denoiser.hidden(tokens_B1, window=window).states_BLD[:, 0])
        # Filling comes after a sequence's tokens, where causal attention doesn't look.
        window_or_none = Window(None, None, extent, self.stores) if self.cached else None
        states_BLD = self.denoiser.hidden(self.inputs_BL[:, :extent], window=window_or_none).states_BLD
        self.filled = self.cached
        return self.denoiser.logits(states_BLD[torch.arange(len(last_B), device=last_B.device), last_B])
