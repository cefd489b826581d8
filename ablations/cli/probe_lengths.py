"""`ablate probe lengths`: the NELBO of trained models at other lengths than they were trained on."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from ablations.cli.recorded import load_study
from ablations.cli.terminal import console, show, show_json
from analysis.formatting import coverage, pvalue, signed
from analysis.statistics.compare import PairedEffect
from analysis.study import Study
from analysis.verdicts.lengths import ByLength, by_length
from core.config.run import RunConfig
from core.data.corpora import check_held_out
from core.errors import UserError
from core.probes.checks import at_length
from core.records.likelihood_kind import listed
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import labelled
from core.training.checks import find_run
from core.training.deepspeed_config import uses_cuda


def run_lengths(arguments: argparse.Namespace) -> int:
    """Measure one run, or every recorded run of an ablation and compare its arms."""
    folder = Path(arguments.name)
    if (folder / "config.yaml").is_file():
        found = measure(folder, arguments.lengths, arguments.sequences)
        return show({"run": str(folder), "nelbo": found}, arguments, partial(_print_run, sequences=arguments.sequences))
    study, home = load_study(arguments)
    values: dict[str, dict[int, Mapping[int, float]]] = {arm: {} for arm in study.arms}
    for (arm, seed), record in sorted(study.cells.items()):
        if record.status == "complete":
            place = next((home / arm).glob(f"seed-{seed}-{record.run_hash}-*"))
            values[arm][seed] = measure(place, arguments.lengths, arguments.sequences)
    if not any(values.values()):
        raise UserError(f"no run of {arguments.name} is complete yet: run it first")
    control, alpha = study.design.control, study.design.alpha
    apart = {
        arm: why for arm in study.arms if arm != control and (why := study.incomparable("val/nelbo", arm, control))
    }
    rows = by_length(values, control, apart, alpha=alpha)
    if arguments.json:
        show_json([{"label": study.labels[row.arm]} | asdict(row) | {"note": apart.get(row.arm, "")} for row in rows])
        return 0
    out = console()
    _print_arms(rows, study, arguments.sequences, out)
    kinds = {arm.label: arm.likelihood for arm in study.design.arms if arm.likelihood}
    for note in filter(None, (*(f"{study.labels[arm]}: {why}" for arm, why in apart.items()), listed(kinds))):
        out.print(line(note))
    return 0


def _print_run(content: dict[str, Any], out: Terminal, sequences: int) -> None:
    out.print(f"NELBO in nats/token of {sequences} held-out sequences of each length")
    out.print(Text("\n".join(f"{length:6d}  {value:.4f}" for length, value in content["nelbo"].items())))


def measure(folder: Path, lengths: Sequence[int] | None, sequences: int) -> dict[int, float]:
    """A run's NELBO at each length, nats per token; by default from 8 to twice the length that it was trained at."""
    config = find_run(folder)
    wanted = lengths or _default_lengths(config)
    for length in wanted:
        check_held_out(at_length(config, length, sequences), sequences)  # refused before anything is measured
    from core.probes.nelbo import nelbo_at  # torch, which mistakes are refused without
    from core.training.weights import open_run  # loads torch

    denoiser = open_run(folder)[1].to("cuda" if uses_cuda(config) else "cpu")
    return {length: float(nelbo_at(config, denoiser, length, sequences).mean()) for length in wanted}


def _default_lengths(config: RunConfig) -> list[int]:
    whole = config.data.sequence_length
    return [*(n for n in (8 << i for i in range(30)) if n < whole), whole, min(2 * whole, config.model.max_positions)]


def _print_arms(rows: Sequence[ByLength], study: Study, sequences: int, out: Terminal) -> None:
    """A row for each arm and length: arm minus control, then the interaction with length."""
    out.unwrapped(
        f"NELBO in nats/token of {sequences} held-out sequences of each length; arm minus control within seeds, Holm "
        "over arms and lengths"
    )
    alpha = study.design.alpha
    table = labelled("arm", "length", "mean", "effect", coverage(alpha), "Holm p", "n")
    for row in rows:
        for place, length in enumerate(row.means):
            label = line(study.labels[row.arm] if place == 0 else "")
            cells = _effect(row.effects[length], row.p_holm.get(length), alpha)
            table.add(label, str(length), f"{row.means[length]:.4f}", *cells)
    out.print(table)
    for row in rows:
        if row.slope is not None and row.p_slope is not None:
            out.unwrapped(
                f"{study.labels[row.arm]}: the difference changes by {signed(row.slope.estimate)} "
                f"[{signed(row.slope.low)}, {signed(row.slope.high)}] as the length doubles, "
                f"Holm p = {pvalue(row.p_slope, alpha)}"
            )


def _effect(effect: PairedEffect | None, p_holm: float | None, alpha: float) -> tuple[str, ...]:
    if effect is None:
        return ("", "", "", "")
    return (
        signed(effect.estimate),
        f"{signed(effect.low)} {signed(effect.high)}",
        pvalue(p_holm, alpha),
        str(effect.n),
    )
