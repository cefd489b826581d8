"""Display of responses while they are decoded: on a terminal the sequences themselves, elsewhere a line for each block."""

from collections.abc import Iterator, Sequence

import torch
from rich.console import Group
from rich.live import Live
from rich.text import Text

from ablations.cli.models import HOLE, Opened
from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import collect, decode, lay_out
from core.diffusion.sampling import Fixed, Sampled, Sampling
from core.runtime.terminal import Terminal


def sampled_from(opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling, out: Terminal | None) -> Sampled:
    """Decode a response to each prompt. out: where people watch; None = nobody does."""
    events = _events(opened, prompts, settings)
    shown = events if out is None else _Screen(opened, prompts, settings, out).watched(events)
    return collect(shown, prompts, settings.length, calls=2 if settings.guidance else 1)


def _events(opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling) -> Iterator[Fixed]:
    if opened.config.causal or opened.config.mask_id is None:
        return decode_autoregressive(
            opened.denoiser, prompts, settings.length, temperature=settings.temperature, seed=settings.seed
        )
    predictor = NetworkPredictor(opened.denoiser, settings.cache)
    device, aligned = opened.denoiser.embed.weight.device, opened.config.block_length
    return decode(predictor, prompts, settings, opened.config.mask_id, device=device, aligned=aligned)


class _Screen:
    """Display of tokens as they are fixed: on a terminal the sequences themselves, elsewhere a line for each block."""

    def __init__(self, opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling, out: Terminal) -> None:
        self.opened, self.out = opened, out
        self.fill = -1 if opened.config.mask_id is None else opened.config.mask_id
        self.tokens_BL, self.length_B = lay_out(prompts, settings.length, self.fill)
        self.total = int(sum(settings.length + list(prompt).count(self.fill) for prompt in prompts))
        self.fixed, self.calls, self.block, self.fresh_BL = 0, 0, -1, torch.zeros_like(self.tokens_BL, dtype=torch.bool)
        self.by_line = bool(settings.block_length) and not opened.config.causal

    def watched(self, events: Iterator[Fixed]) -> Iterator[Fixed]:
        """Yield the events, showing each as it passes."""
        if not self.out.is_terminal:
            for event in events:
                if self.by_line and self.block not in (event.block, -1):
                    self.out.unwrapped(self._line())
                self._take(event)
                yield event
            if self.by_line:
                self.out.unwrapped(self._line())
            return
        with Live(self._render(), console=self.out, auto_refresh=False, transient=True) as live:
            for event in events:
                self._take(event)
                live.update(self._render(), refresh=True)
                yield event

    def _take(self, event: Fixed) -> None:
        sequence_M, position_M = event.sequence_M.cpu(), event.position_M.cpu()
        self.tokens_BL[sequence_M, position_M] = event.token_M.cpu()
        self.fresh_BL.zero_()
        self.fresh_BL[sequence_M, position_M] = True
        self.fixed, self.calls, self.block = self.fixed + len(position_M), event.step + 1, event.block

    def _line(self) -> str:
        return f"block {self.block + 1}: {self.fixed} of {self.total} tokens in {self.calls} calls"

    def _render(self) -> Group:
        parts = []
        for tokens_L, fresh_L, length in zip(
            self.tokens_BL.tolist(), self.fresh_BL.tolist(), self.length_B, strict=True
        ):
            text, run = Text(), 0
            for place in range(1, int(length) + 1):  # by runs of one style: single bytes may be no characters
                style = self._style(tokens_L[run], fresh_L[run])
                if place == int(length) or self._style(tokens_L[place], fresh_L[place]) != style:
                    apart = " " if run and self.opened.tokenizer is None else ""
                    text.append(apart + self._shown(tokens_L[run:place]), style=style)
                    run = place
            parts.append(text)
        return Group(*parts, Text(f"{self._line()}, {self.fixed / max(1, self.calls):.1f} tokens a call", style="dim"))

    def _style(self, token: int, fresh: bool) -> str:
        return "bold green" if fresh else "dim" if token == self.fill else ""

    def _shown(self, tokens: Sequence[int]) -> str:
        return HOLE * len(tokens) if tokens[0] == self.fill else self.opened.decode(tokens)
