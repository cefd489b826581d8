"""`ablate sample`: decode with a model, and watch which tokens are fixed when."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ablations.cli.commands import console, show_json
from ablations.cli.models import HOLE, Opened, given, open_model
from core.diffusion.anomalies import find_anomalies
from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.decoding import collect, decode, lay_out
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampling import Fixed, Sampled, Sampling, check_autoregressive, check_sampling
from core.errors import UserError
from core.records import write_atomically

ONLY_DIFFUSION = ("block_length", "steps", "remasking", "threshold", "low_threshold", "cfg", "cache")
DIGITS = 6


def run_sample(arguments: argparse.Namespace) -> int:
    """Decode a response to each prompt; show it as it comes, write its trace, or print JSON."""
    opened = open_model(arguments.model, arguments.tokenizer)
    prompts = [opened.encode(text) for text in arguments.prompt or [""]]
    settings = _settings(arguments, opened, prompts)
    began = time.perf_counter()
    events = _events(opened, prompts, settings)
    shown = events if arguments.json else _Screen(opened, prompts, settings, console()).watched(events)
    sampled = collect(shown, prompts, settings.length, calls=2 if settings.guidance else 1)
    content = _content(opened, prompts, settings, sampled, time.perf_counter() - began)
    if arguments.trace is not None:
        arguments.trace.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.trace, json.dumps(content | {"traces": _traces(opened, sampled)}) + "\n")
    show_json(content) if arguments.json else _print(content, arguments, console())
    return 0


def _settings(arguments: argparse.Namespace, opened: Opened, prompts: Sequence[Sequence[int]]) -> Sampling:
    """What was asked for, checked against the model. Raises UserError."""
    if opened.config.causal or opened.config.mask_id is None:
        unfit = list(given(arguments, ONLY_DIFFUSION))
        if unfit:
            raise UserError(
                f"--{unfit[0].replace('_', '-')} is of decoding by diffusion, and the model has no mask token: it is "
                "autoregressive; leave the option out to decode it token after token"
            )
        settings = Sampling(**given(arguments, ("length", "temperature", "seed")))  # type: ignore[arg-type]
        check_autoregressive(opened.config, prompts, settings.length)
        return settings
    options = given(arguments, ("length", "temperature", "seed", *ONLY_DIFFUSION))
    if "cfg" in options:
        options["guidance"] = options.pop("cfg")
    if "length" not in options and any(opened.config.mask_id in prompt for prompt in prompts):
        options["length"] = 0  # the prompt says itself what is missing
    settings = Sampling(**options)  # type: ignore[arg-type]
    check_sampling(opened.config, prompts, settings)
    return settings


def _events(opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling) -> Iterator[Fixed]:
    if opened.config.causal or opened.config.mask_id is None:
        return decode_autoregressive(
            opened.denoiser, prompts, settings.length, temperature=settings.temperature, seed=settings.seed
        )
    predictor = NetworkPredictor(opened.denoiser, settings.cache)
    device, aligned = opened.denoiser.embed.weight.device, opened.config.block_length
    return decode(predictor, prompts, settings, opened.config.mask_id, device=device, aligned=aligned)


class _Screen:
    """What people see while tokens are fixed: on a terminal the sequences themselves, elsewhere a line for each block."""

    def __init__(self, opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling, out: Console) -> None:
        self.opened, self.out = opened, out
        self.fill = -1 if opened.config.mask_id is None else opened.config.mask_id
        self.tokens_BL, self.length_B = lay_out(prompts, settings.length, self.fill)
        self.total = int(sum(settings.length + list(prompt).count(self.fill) for prompt in prompts))
        self.fixed, self.calls, self.block, self.fresh_BL = 0, 0, -1, torch.zeros_like(self.tokens_BL, dtype=torch.bool)
        self.by_line = bool(settings.block_length) and not opened.config.causal

    def watched(self, events: Iterator[Fixed]) -> Iterator[Fixed]:
        """The same events, shown as they pass."""
        if not self.out.is_terminal:
            for event in events:
                if self.by_line and self.block not in (event.block, -1):
                    self.out.print(self._line(), markup=False, soft_wrap=True)
                self._take(event)
                yield event
            if self.by_line:
                self.out.print(self._line(), markup=False, soft_wrap=True)
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


def _content(
    opened: Opened, prompts: Sequence[Sequence[int]], settings: Sampling, sampled: Sampled, seconds: float
) -> dict[str, Any]:
    sequences = []
    for index, prompt in enumerate(prompts):
        tokens, eos = sampled.sequence(index).tolist(), opened.config.eos_id
        response = tokens[len(prompt) :]
        response = response[: response.index(eos)] if eos in response else response
        found = find_anomalies(sampled, index, eos)
        sequences.append(
            {
                "text": opened.decode(tokens[: len(prompt) + len(response)]),
                "response": opened.decode(response),
                "nfe": int(sampled.nfe_B[index]),
                "anomalies": asdict(found) | {"repeats": found.repeats, "stuck": found.stuck},
            }
        )
    fixed = int((sampled.step_BL >= 0).sum())
    return {
        "settings": asdict(settings),
        "sequences": sequences,
        "tokens": fixed,
        "tokens_per_call": sampled.tokens_per_call,
        "seconds": seconds,
        "tokens_per_second": fixed / seconds,
    }


def _traces(opened: Opened, sampled: Sampled) -> list[dict[str, Any]]:
    """Of each sequence: its tokens, their text, the call that fixed each (-1: given) and its probability then."""
    rows = []
    for index in range(len(sampled.tokens_BL)):
        length, tokens = int(sampled.length_B[index]), sampled.sequence(index).tolist()
        confidence = sampled.confidence_BL[index, :length].tolist()
        rows.append(
            {
                "tokens": tokens,
                "text": [opened.decode([token]) for token in tokens],
                "step": sampled.step_BL[index, :length].tolist(),
                "confidence": [None if value != value else round(value, DIGITS) for value in confidence],
            }
        )
    return rows


def _print(content: dict[str, Any], arguments: argparse.Namespace, out: Console) -> None:
    for sequence in content["sequences"]:
        out.print(sequence["text"], markup=False, soft_wrap=True)
        anomalies = sequence["anomalies"]
        if anomalies["repeats"]:
            loop = f", a loop of {anomalies['loop']} tokens" if anomalies["loop"] else ""
            out.print(f"repeats itself: {anomalies['repetition']:.0%} of 4-grams{loop}")
        if anomalies["stuck"]:
            out.print(f"stuck: {anomalies['guesses']} calls in a row fixed nothing more probable than a half")
    calls = sum(sequence["nfe"] for sequence in content["sequences"])
    out.print(
        f"{content['tokens']} tokens, {calls} network calls, {content['tokens_per_call']:.2f} tokens a call, "
        f"{content['tokens_per_second']:.0f} tokens/s",
        soft_wrap=True,
    )
    if arguments.trace is not None:
        out.print(f"trace: {arguments.trace}", markup=False, soft_wrap=True)
