"""`ablate bench tasks` and `pairs`: how often answers are right, by how they are decoded, and what is found likely."""

import argparse
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ablations.cli.options import check_at_least
from ablations.cli.terminal import show
from analysis.formatting import coverage, percent, pvalue
from analysis.statistics.compare import holm
from core.data.tasks import first_held_out, room, task_of
from core.diffusion.sampling import Sampling
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from core.training.checks import find_run

if TYPE_CHECKING:
    from core.probes.responses import TaskResult  # loads torch

ALPHA = 0.05

BASE = "one token a call"  # what the others are compared with, prompt by prompt


def run_tasks(arguments: argparse.Namespace) -> int:
    """Answer the same held-out prompts under every setting; compare each with one token a call, all positions open."""
    config = find_run(arguments.model)
    name = task_of(config)
    first_held_out(name, arguments.count)
    length = room(name)
    grid = list(_grid(arguments, length, causal=config.model.causal))
    from core.probes.responses import exact_match  # torch, which mistakes are refused without
    from core.training.weights import open_run  # loads torch

    _, denoiser = open_run(arguments.model)
    results: dict[str, TaskResult] = {}
    for label, settings in grid:
        results[label] = exact_match(config, denoiser, settings, arguments.count)
    content = {"task": name, "examples": arguments.count, "length": length, "rows": _rows(results)}
    return show(content, arguments, _print)


def _grid(arguments: argparse.Namespace, length: int, *, causal: bool) -> Iterator[tuple[str, Sampling]]:
    """The compared settings by name, the base first. Settings that a short response has no room for are left out."""
    yield BASE, Sampling(length=length)
    if causal:
        return
    for rule, size, count in itertools.product(arguments.remasking, arguments.block_length, arguments.tokens_per_call):
        blocks = length // min(size, length)
        if (rule, min(size, length), count) != ("low_confidence", length, 1) and length // count >= blocks:
            settings = Sampling(length=length, block_length=min(size, length), steps=length // count, remasking=rule)
            yield f"{rule}, blocks of {min(size, length)}, {count} tokens a call", settings
    for size, threshold in itertools.product(arguments.block_length, arguments.thresholds):
        size = min(size, length)
        yield (
            f"threshold {threshold:g}, blocks of {size}",
            Sampling(length=length, block_length=size, threshold=threshold),
        )


def _rows(results: "dict[str, TaskResult]") -> list[dict[str, Any]]:
    from scipy.stats import binomtest  # a second

    base, others = results[BASE], [label for label in results if label != BASE]
    pvalues = holm([_mcnemar(results[label].right_N, base.right_N) for label in others])
    adjusted = dict(zip(others, pvalues, strict=True))
    rows = []
    for label, result in results.items():
        right = int(result.right_N.sum())
        interval = binomtest(right, len(result.right_N)).proportion_ci(1 - ALPHA, method="wilson")
        rows.append(
            {
                "decoding": label,
                "exact_match": result.exact_match,
                "low": float(interval.low),
                "high": float(interval.high),
                "difference": result.exact_match - base.exact_match,
                "adjusted": float(adjusted[label]) if label in adjusted else None,
                "nfe": float(result.nfe_N.mean()),
                "tokens_per_call": result.tokens_per_call,
            }
        )
    return rows


def _mcnemar(right_N: np.ndarray, base_N: np.ndarray) -> float:
    """The exact p-value that two decodings of the same prompts are as often right (McNemar 1947)."""
    from scipy.stats import binomtest

    gained, lost = int((right_N & ~base_N).sum()), int((~right_N & base_N).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _print(content: dict[str, Any], out: Terminal) -> None:
    out.unwrapped(
        f"{content['task']}: {content['examples']} held-out prompts, {content['length']} tokens decoded after each; exact "
        f"match with its {coverage(ALPHA)} (Wilson); p: McNemar against one token a call, Holm over the rows"
    )
    table = labelled("decoding", "exact match", "difference", "p adj.", "NFE", "TPF")
    for row in content["rows"]:
        table.add(
            row["decoding"],
            f"{row['exact_match']:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
            "" if row["adjusted"] is None else percent(row["difference"]),
            "" if row["adjusted"] is None else pvalue(row["adjusted"], ALPHA),
            f"{row['nfe']:.1f}",
            f"{row['tokens_per_call']:.2f}",
        )
    out.print(table)


def run_pairs(arguments: argparse.Namespace) -> int:
    """Count how often a right response is likelier than one that is wrong by a symbol."""
    config = find_run(arguments.model)
    first_held_out(task_of(config), arguments.count, "pairs")
    check_at_least(1, arguments, "draws")
    from scipy.stats import binomtest  # seconds, all of them, which mistakes are refused without

    from core.probes.nelbo import minimal_pairs  # loads torch
    from core.training.weights import open_run  # loads torch

    _, denoiser = open_run(arguments.model)
    result = minimal_pairs(config, denoiser, arguments.count, draws=arguments.draws)
    wins = float(result.preferred * arguments.count)
    interval = binomtest(round(wins), arguments.count).proportion_ci(1 - ALPHA, method="wilson")
    content = {
        "task": task_of(config),
        "pairs": arguments.count,
        "draws": arguments.draws,
        "preferred": result.preferred,
        "low": float(interval.low),
        "high": float(interval.high),
        "margin": float(result.margin_N.mean()),
        "margin_sd": float(result.margin_N.std(ddof=1)) if arguments.count > 1 else None,
        "uncertain": int((abs(result.margin_N) < 2 * result.se_N).sum()),
    }
    return show(content, arguments, _print_pairs)


def _print_pairs(content: dict[str, Any], out: Terminal) -> None:
    out.unwrapped(
        f"{content['task']}: the right response is likelier than one wrong by a symbol in {content['preferred']:.1%} "
        f"[{content['low']:.1%}, {content['high']:.1%}] of {content['pairs']} held-out pairs ({coverage(ALPHA)}, Wilson), by "
        f"{content['margin']:.3g} nats on average; {content['uncertain']} pairs are undecided by {content['draws']} draws of "
        "masks"
    )
