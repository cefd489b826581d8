"""`ablate bench text`: how good free responses are, by how they are decoded, judged without the model."""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ablations.cli.models import open_model
from ablations.cli.terminal import show
from core.config.run import RunConfig
from core.data.corpora import check_held_out
from core.data.corpora import load as load_corpus
from core.data.corpus import text_kinds
from core.data.mixtures import kinds
from core.data.tokenizers import load_tokenizer
from core.diffusion.sampling import Sampled, Sampling, check_autoregressive, check_sampling
from core.errors import UserError
from core.probes.text_quality import NgramJudge, distinct, entropy, longest_copied_span
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from core.training.checks import find_run

if TYPE_CHECKING:
    from core.model.transformer import Denoiser  # loads torch

JUDGED_BY = 2_000_000  # training tokens, at most


def run_text(arguments: argparse.Namespace) -> int:
    """Continue held-out beginnings under every setting, and judge what comes beside the text that was there."""
    config = find_run(arguments.model)
    check_held_out(config, arguments.count)
    length = min(arguments.length[0], config.data.sequence_length - arguments.prompt_length)
    grid = list(_grid(arguments, length, causal=config.model.causal))
    reader = _reader(arguments, config)
    from core.data.module import held_out  # torch, which mistakes are refused without
    from core.training.weights import open_run  # loads torch

    _, denoiser = open_run(arguments.model)
    sequences_NL, _ = held_out(config, arguments.count)
    prompts = sequences_NL[:, : arguments.prompt_length].tolist()
    train_T = np.asarray(load_corpus(config.data).train_T[:JUDGED_BY])
    vocabulary = config.model.vocab_size
    judge = NgramJudge.of(train_T, vocabulary, order=max(n for n in (1, 2, 3, 4) if vocabulary**n <= 2**63))
    real = [row[arguments.prompt_length :][:length] for row in sequences_NL.numpy()]
    rows = [
        {"decoding": "held-out text", "tokens_per_call": None} | _judged(real, judge, train_T) | reader(prompts, real)
    ]
    for label, settings in grid:
        sampled = _decoded(config, denoiser, prompts, settings)
        responses = [sampled.sequence(index).numpy()[len(prompt) :] for index, prompt in enumerate(prompts)]
        rows.append(
            {"decoding": label, "tokens_per_call": sampled.tokens_per_call}
            | _judged(responses, judge, train_T)
            | reader(prompts, responses)
        )
    content = {"samples": len(prompts), "length": length, "temperature": arguments.temperature, "rows": rows}
    return show(content, arguments, _print)


def _grid(arguments: argparse.Namespace, length: int, *, causal: bool) -> Iterator[tuple[str, Sampling]]:
    if causal:
        yield "token after token", Sampling(length=length, temperature=arguments.temperature)
        return
    for rule, size, count in itertools.product(arguments.remasking, arguments.block_length, arguments.tokens_per_call):
        size = min(size, length)
        settings = Sampling(
            length=length, block_length=size, steps=length // count, remasking=rule, temperature=arguments.temperature
        )
        yield f"{rule}, blocks of {size}, {count} tokens a call", settings


def _decoded(config: RunConfig, denoiser: "Denoiser", prompts: list[list[int]], settings: Sampling) -> Sampled:
    from core.diffusion.autoregressive import decode_autoregressive  # loads torch
    from core.diffusion.predictors import NetworkPredictor  # loads torch
    from core.diffusion.sampler import collect, sample  # loads torch

    if config.model.causal:
        events = decode_autoregressive(denoiser, prompts, settings.length, temperature=settings.temperature)
        return collect(events, prompts, settings.length)
    mask_id = check_sampling(config.model, prompts, settings)
    return sample(NetworkPredictor(denoiser), prompts, settings, mask_id, aligned=config.model.block_length)


def _reader(
    arguments: argparse.Namespace, config: RunConfig
) -> Callable[[Sequence[Sequence[int]], Sequence[np.ndarray]], dict[str, Any]]:
    """Scorer of responses by the model of --judge, in bits per byte; empty without one."""
    if arguments.judge is None:
        return lambda prompts, responses: {}
    opened = open_model(arguments.judge)
    if opened.tokenizer is None or not kinds(config.data.corpus) <= text_kinds().keys():
        raise UserError(f"--judge {arguments.judge}: judge and model must both read text, with a tokenizer each")
    check_autoregressive(opened.config, [], 0)
    own, theirs = load_tokenizer(config.data.tokenizer), opened.tokenizer

    def read(prompts: Sequence[Sequence[int]], responses: Sequence[np.ndarray]) -> dict[str, Any]:
        asked = [own.decode(list(map(int, prompt))) for prompt in prompts]
        said = [own.decode(response.tolist()) for response in responses]
        before, after = (
            [theirs.encode("a response", text.encode()).tolist() for text in texts] for texts in (asked, said)
        )
        from core.probes.likelihood import Continued, log_likelihoods  # torch, which mistakes are refused without

        found = log_likelihoods(opened.denoiser, [Continued(*pair) for pair in zip(before, after, strict=True)])
        return {
            "judge_bits_per_byte": -math.fsum(each.log_p for each in found)
            / math.log(2)
            / max(1, sum(len(text.encode()) for text in said))
        }

    return read


def _judged(samples: Sequence[np.ndarray], judge: NgramJudge, train_T: np.ndarray) -> dict[str, Any]:
    return {
        "ngram_nats": float(np.mean([judge.cross_entropy(one) for one in samples])),
        "distinct_4": distinct(samples),
        "entropy": float(np.mean([entropy(one) for one in samples])),
        "copied": float(np.mean([longest_copied_span(one, train_T) for one in samples])),
    }


def _print(content: dict[str, Any], out: Terminal) -> None:
    out.unwrapped(
        f"{content['samples']} responses of {content['length']} tokens to held-out beginnings, temperature "
        f"{content['temperature']:g}; n-gram judge in nats per token, entropy of a response's own tokens in nats, its "
        "longest span of training text in tokens"
    )
    asked = ["judge, bits/byte"] if "judge_bits_per_byte" in content["rows"][0] else []
    table = labelled("decoding", "n-gram judge", *asked, "distinct-4", "entropy", "copied", "TPF")
    for row in content["rows"]:
        table.add(
            row["decoding"],
            f"{row['ngram_nats']:.3f}",
            *([f"{row['judge_bits_per_byte']:.3f}"] if asked else []),
            f"{row['distinct_4']:.3f}",
            f"{row['entropy']:.2f}",
            f"{row['copied']:.1f}",
            "" if row["tokens_per_call"] is None else f"{row['tokens_per_call']:.2f}",
        )
    out.print(table)
