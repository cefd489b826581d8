"""`ablate bench`: what decoding with a model costs, and what its shortcuts change."""

import argparse
import importlib
import itertools
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ablations.cli.models import Opened, open_model
from ablations.cli.options import check_at_least
from ablations.cli.terminal import show
from core.data.corpora import check_held_out
from core.errors import UserError
from core.model.flops import count
from core.probes.checks import Cell
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from core.training.checks import find_run

if TYPE_CHECKING:
    import torch

    from core.probes.decoding_cost import Cost  # loads torch

DEFAULTS = {
    "length": [128], "block_length": [32], "batch": [1, 4], "tokens_per_call": [1, 2], "threshold": 0.9, "temperature": 1.0,
}  # fmt: skip
KINDS = {
    "tasks": ("bench_tasks", "run_tasks"), "pairs": ("bench_tasks", "run_pairs"), "text": ("bench_text", "run_text"),
    "lm-eval": ("bench_lm_eval", "run_lm_eval"), "humaneval": ("bench_humaneval", "run_humaneval"),
}  # fmt: skip
JUDGED = ("lm-eval", "humaneval")  # by what others wrote: with options and defaults of their own
BASE = "none"  # what the others are compared with: full recomputation


def run_bench(arguments: argparse.Namespace) -> int:
    """Time the sampler in every cell of the grid, beside its peers; or count a model's right answers."""
    if arguments.kind in JUDGED:
        return _run_kind(arguments)
    for name, value in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    check_at_least(1, arguments, "length", "block_length", "batch", "tokens_per_call")
    if arguments.kind in KINDS:
        find_run(arguments.model)
        return _run_kind(arguments)
    check_at_least(1, arguments, "rounds")
    check_at_least(0, arguments, "prompt_length")
    opened = open_model(arguments.model)
    _check_prompts(opened, max(arguments.batch), arguments.prompt_length)
    grid = itertools.product(arguments.length, arguments.block_length, arguments.batch, arguments.tokens_per_call)
    cells = [Cell(*sizes) for sizes in grid]
    for cell in cells:
        cell.check()
    from core.data.module import held_out  # torch, which mistakes are refused without
    from core.probes.decoding_cost import cache_errors, measure  # loads torch

    assert opened.run is not None
    prompts = held_out(opened.run, max(arguments.batch))[0][:, : arguments.prompt_length].tolist()
    costs, errors = [], []
    for cell in cells:
        costs += measure(opened.denoiser, prompts, cell, rounds=arguments.rounds, threshold=arguments.threshold)
        errors += cache_errors(opened.denoiser, prompts, cell)
    size = count(opened.config)
    content = {
        "model": {"total": size.total, "active": size.active},
        "machine": _machine(opened.denoiser.embed.weight.device),
        "rounds": arguments.rounds,
        "costs": _rows(costs),
        "errors": [asdict(error) | {"cell": asdict(error.cell)} for error in errors],
    }
    return show(content, arguments, _print)


def _run_kind(arguments: argparse.Namespace) -> int:
    module, function = KINDS[arguments.kind]
    status: int = getattr(importlib.import_module(f"ablations.cli.{module}"), function)(arguments)
    return status


def _check_prompts(opened: Opened, number: int, length: int) -> None:
    """Refuse prompts that the model's own data, whose held-out sequences begin with them, don't hold."""
    if opened.run is None:
        raise UserError(
            f"{opened.folder} has no config.yaml, so it isn't known what it reads: ablate import hf {opened.folder}"
        )
    if length > opened.run.data.sequence_length:
        raise UserError(f"--prompt-length {length} exceeds data.sequence_length={opened.run.data.sequence_length}")
    check_held_out(opened.run, number)


def _machine(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}, torch {torch.__version__}"


def _rows(costs: "Sequence[Cost]") -> list[dict[str, Any]]:
    """Each contestant of each cell, with tokens a second over full recomputation's of the same round."""
    base = {cost.cell: cost.seconds_R for cost in costs if cost.contestant == BASE}
    rows = []
    for cost in costs:
        speed = [cost.tokens / seconds for seconds in cost.seconds_R]
        over = [a / b for a, b in zip(base[cost.cell], cost.seconds_R, strict=True)]
        rows.append(
            asdict(cost.cell)
            | {
                "contestant": cost.contestant,
                "nfe": cost.nfe,
                "tokens_fixed_per_call": cost.tokens_per_call,
                "tokens_per_second": _spread(speed),
                "ms_per_token": _spread([1e3 / value for value in speed]),
                "over_recomputation": _spread(over),
                "peak_bytes": cost.peak_bytes,
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, the nearest values that were measured."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": statistics.median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


def _print(content: dict[str, Any], out: Terminal) -> None:
    model = content["model"]
    out.unwrapped(
        f"{model['total']:,} parameters, {model['active']:,} active; {content['machine']}; medians [quartiles] of "
        f"{content['rounds']} rounds"
    )
    for key, group in itertools.groupby(content["costs"], _cell_name):
        out.print()
        out.print(key)
        table = labelled("cache", "NFE", "TPF", "ms/token", "tokens/s", "over none", "peak MB")
        for row in group:
            table.add(
                row["contestant"],
                f"{row['nfe']:.0f}",
                f"{row['tokens_fixed_per_call']:.2f}",
                _cell(row["ms_per_token"], ".2f"),
                _cell(row["tokens_per_second"], ".0f"),
                _cell(row["over_recomputation"], ".2f"),
                f"{row['peak_bytes'] / 1e6:.1f}",
            )
        out.print(table)
        for error in content["errors"]:
            if _cell_name(error["cell"]) == key:
                out.unwrapped(
                    f"{error['cache']}: predictions move by {error['distance']:.4f} (total variation), {error['changed']:.1%}"
                    f" have another first choice; {error['agreement']:.1%} of the decoded tokens are those without a cache"
                )


def _cell_name(row: dict[str, Any]) -> str:
    return (
        f"length {row['length']}, blocks of {row['block_length']}, batch {row['batch']}, {row['tokens_per_call']} "
        f"token{'s' if row['tokens_per_call'] > 1 else ''} a call"
    )


def _cell(spread: dict[str, float], form: str) -> str:
    return f"{spread['median']:{form}} [{spread['low']:{form}}, {spread['high']:{form}}]"
