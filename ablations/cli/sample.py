"""`ablate sample`: decode with a model, and watch which tokens are fixed when."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from ablations.cli.models import Opened, given, open_model
from ablations.cli.terminal import console, show
from core.diffusion.anomalies import find_anomalies
from core.diffusion.sampling import Sampled, Sampling, check_autoregressive, check_sampling
from core.errors import UserError
from core.records.run_record import write_atomically
from core.runtime.terminal import Terminal

ONLY_DIFFUSION = ("block_length", "steps", "remasking", "threshold", "low_threshold", "cfg", "cache")
DIGITS = 6


def run_sample(arguments: argparse.Namespace) -> int:
    """Decode a response to each prompt; show it as it comes, write its trace, or print JSON."""
    opened = open_model(arguments.model, arguments.tokenizer)
    prompts = [opened.encode(text) for text in arguments.prompt or [""]]
    settings = _settings(arguments, opened, prompts)
    from ablations.cli.screen import sampled_from  # torch, which mistakes are refused without

    opened.denoiser  # noqa: B018  (read now, so that it isn't counted as sampling)
    began = time.perf_counter()
    sampled = sampled_from(opened, prompts, settings, None if arguments.json else console())
    content = _content(opened, prompts, settings, sampled, time.perf_counter() - began)
    if arguments.trace is not None:
        arguments.trace.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.trace, json.dumps(content | {"traces": _traces(opened, sampled)}) + "\n")
    return show(content, arguments, partial(_print, trace=arguments.trace))


def _settings(arguments: argparse.Namespace, opened: Opened, prompts: Sequence[Sequence[int]]) -> Sampling:
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
    """For each sequence its tokens, their text, the call that fixed each (-1: given) and its probability then."""
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


def _print(content: dict[str, Any], out: Terminal, trace: Path | None) -> None:
    for sequence in content["sequences"]:
        out.unwrapped(Text(sequence["text"]))  # its line breaks are its own
        anomalies = sequence["anomalies"]
        if anomalies["repeats"]:
            loop = f", a loop of {anomalies['loop']} tokens" if anomalies["loop"] else ""
            out.print(f"repeats itself: {anomalies['repetition']:.0%} of 4-grams{loop}")
        if anomalies["stuck"]:
            out.print(f"stuck: {anomalies['guesses']} calls in a row fixed nothing more probable than a half")
    calls = sum(sequence["nfe"] for sequence in content["sequences"])
    out.unwrapped(
        f"{content['tokens']} tokens, {calls} network calls, {content['tokens_per_call']:.2f} tokens a call, "
        f"{content['tokens_per_second']:.0f} tokens/s"
    )
    if trace is not None:
        out.unwrapped(f"trace: {trace}")
