"""`ablate bench humaneval`: functions that a model writes, and with --execute whether they pass their tests."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ablations.cli.bench_lm_eval import asked_of, responder_of, save, save_text
from ablations.cli.options import check_at_least
from ablations.cli.terminal import show
from core.config.model import ModelConfig
from core.errors import UserError
from core.execution.examining import Verdict, examine_all
from core.execution.sandbox import Limits, confinement
from core.probes.humaneval import UNTIL, Problem, pass_rate, problems, wanted_k
from core.runtime.terminal import Terminal

if TYPE_CHECKING:
    from core.probes.responses import Responder  # loads torch

LENGTH = 512
TEMPERATURE = 0.8  # where there are several samples (Chen et al. 2021, Fig. 5)
WORKERS = 8  # at most: each problem is two small processes
LIMITS = Limits()


def run_humaneval(arguments: argparse.Namespace) -> int:
    """Write the functions' bodies; run them where that was asked for."""
    check_at_least(1, arguments, "limit", "samples_per_problem")
    if arguments.execute:
        confinement()  # before anything is decoded
    asked = problems()[: arguments.limit]
    opened, how = asked_of(arguments)
    _check_context(opened.config, arguments)
    responder = responder_of(opened, how, arguments)
    completions, settings = _complete(asked, responder, arguments)
    path = arguments.to or arguments.model / "humaneval.json"
    rows: list[dict[str, Any]] = [
        {"task_id": problem.task_id, "completion": completion} for problem, completion in completions
    ]
    _write_rows(path.with_suffix(".jsonl"), rows)  # first: they took longest
    content: dict[str, Any] = {"model": str(arguments.model), "problems": len(asked), "settings": settings}
    if arguments.execute:
        examined = [problem.examined(completion) for problem, completion in completions]
        verdicts = list(examine_all(examined, LIMITS, min(WORKERS, os.cpu_count() or 1)))
        content |= _judged(verdicts, arguments.samples_per_problem)
        _write_rows(path.with_suffix(".jsonl"), [row | asdict(said) for row, said in zip(rows, verdicts, strict=True)])
    save(path, content)
    return show(content, arguments, partial(_print, path=path))


def _check_context(model: ModelConfig, arguments: argparse.Namespace) -> None:
    context = arguments.context or model.max_positions
    if not 1 <= context <= model.max_positions:
        raise UserError(f"--context {context} must lie in 1..model.max_positions={model.max_positions}")


def _complete(
    asked: Sequence[Problem], responder: "Responder", arguments: argparse.Namespace
) -> tuple[list[tuple[Problem, str]], dict[str, Any]]:
    """Each problem as often as wanted, with what the model wrote; and how it was asked."""
    samples = arguments.samples_per_problem
    temperature = arguments.temperature if arguments.temperature is not None else TEMPERATURE * (samples > 1)
    length = arguments.length[0] if arguments.length else LENGTH
    from core.probes.responses import Asked  # loads torch

    cut, asks = 0, []
    context = arguments.context or responder.denoiser.config.max_positions
    for problem in asked:
        tokens = responder.tokenizer.encode(problem.task_id, problem.prompt.encode(), special=False).tolist()
        prompt, shortened = responder.fit(tokens, length, context)
        cut += shortened
        asks += [Asked(prompt, length, UNTIL, temperature)] * samples
    with tqdm(total=len(asks), desc="humaneval", disable=None) as bar:  # None: where nobody watches
        answers = responder.respond(asks, tell=bar.update)
    repeated = [problem for problem in asked for _ in range(samples)]
    settings = {
        "samples_per_problem": samples,
        "length": length,
        "context": context,
        "temperature": temperature,
        "block_length": responder.settings.block_length,
        "tokens_per_call": responder.tokens_per_call,
        "remasking": responder.settings.remasking,
        "threshold": responder.settings.threshold,
        "seed": responder.settings.seed,
        "batch": responder.batch,
        "truncated": cut,
    }
    return list(zip(repeated, answers, strict=True)), settings


def _judged(verdicts: Sequence[Verdict], samples: int) -> dict[str, Any]:
    right_NS = np.array([verdict.passed for verdict in verdicts]).reshape(-1, samples)
    kinds = Counter((verdict.reason or "").partition(":")[0] for verdict in verdicts if not verdict.passed)
    return {
        "confinement": {"namespaces": confinement().namespaces, "other_user": confinement().other_user},
        "limits": asdict(LIMITS),
        "pass": [asdict(pass_rate(right_NS, k)) for k in wanted_k(samples)],
        "failures": dict(kinds.most_common()),
    }


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples as JSON lines, which the package's own evaluation reads too."""
    save_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _print(content: Mapping[str, Any], out: Terminal, path: Path) -> None:
    settings = content["settings"]
    if settings["truncated"]:
        out.unwrapped(
            f"{settings['truncated']} of {content['problems']} prompts lost their beginning: they are longer than "
            f"{settings['context']} tokens leave room for"
        )
    for rate in content.get("pass", ()):
        out.unwrapped(
            f"pass@{rate['k']}: {rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}] of {content['problems']} "
            f"problems, {settings['samples_per_problem']} samples of each (95 % interval over problems)"
        )
    if content.get("failures"):
        said = ", ".join(f"{kind} {count}" for kind, count in content["failures"].items())
        out.unwrapped(f"failures: {said}")
    if "pass" not in content:
        out.unwrapped("nothing was executed: --execute runs what the model wrote, confined")
    elif not content["confinement"]["namespaces"]:
        out.unwrapped(
            "this kernel permits no namespaces: the programs could read what any user of this machine may read"
        )
    out.unwrapped(f"completions: {path.with_suffix('.jsonl')}")
    out.unwrapped(f"results: {path}")
