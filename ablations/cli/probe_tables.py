"""Tables of a routing probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.formatting import coverage, pvalue
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled

ALPHA = 0.05


def print_run(content: dict[str, Any], path: Path, out: Terminal) -> None:
    """A row for each layer in both designs, then what other routing does to the NELBO."""
    out.unwrapped(
        f"{_router(content)}, seed {content['seed']}: {content['sequences']} held-out sequences of {content['data']}, "
        f"{content['timesteps']} timesteps, {content['nelbo']:.4f} nats per token"
    )
    names = (
        "design",
        "I(E;T|M), nats",
        f"simultaneous {coverage(ALPHA)}".removesuffix(" interval"),
        "% of H(E|M)",
        "JSD visible",
        "JSD masked",
        "p adj.",
    )
    table = labelled("layer", *names, left=("design",))
    for crossed, plain in zip(content["crossed"], content["plain"], strict=True):
        for design, row in (("crossed", crossed), ("plain", plain)):
            table.add(
                str(row["layer"]) if design == "crossed" else "",
                design,
                _with_error(row["nats"], row["error"]),
                f"{row['low']:.4f} to {row['high']:.4f}",
                _percent(row["share"]),
                _number(row["divergence_visible"]),
                _number(row["divergence_masked"]),
                pvalue(row["adjusted"], ALPHA),
            )
    out.print(table)
    out.unwrapped(
        "crossed: the same tokens at every timestep, their masked status the same; plain: each sequence at one timestep"
    )
    out.unwrapped(f"routed as half the timesteps away: {_change(content['swapped'])}")
    if content["told"] is not None:
        out.unwrapped(f"told the timestep half of them away: {_change(content['told'])}")
    out.unwrapped(f"probe: {path}")


def print_study(rows: Sequence[dict[str, Any]], out: Terminal) -> None:
    """A row for each arm: means over layers and seeds, and standard errors over seeds."""
    table = labelled("arm", "runs", "crossed", "% of H", "depend", "plain", "swapped", "told")
    for row in rows:
        runs = row["runs"]
        table.add(
            row["label"],
            str(len(runs)),
            _over_runs(_layer_mean(runs, "crossed", "nats"), ".3f"),
            _over_runs(100 * _layer_mean(runs, "crossed", "share"), ".1f"),
            _depend(runs),
            _over_runs(_layer_mean(runs, "plain", "nats"), ".3f"),
            _over_runs(np.array([run["swapped"]["mean"] for run in runs]), "+.4f"),
            _over_runs(np.array([run["told"]["mean"] for run in runs if run["told"] is not None]), "+.4f"),
        )
    out.print(table)
    out.unwrapped(
        "means over layers and runs, ± standard error over runs. crossed, plain: I(E;T|M) in nats, of two designs; % of H: "
        f"crossed as a share of H(E|M); depend: runs with a layer of adjusted p < {ALPHA} (crossed); swapped, told: change "
        "of the NELBO, nats per token, when tokens are routed as half the timesteps away, and when routers are told the "
        "timestep half of them away"
    )
    for row in rows:
        for note in row["notes"]:
            out.unwrapped(f"{row['label']}: {note}")


def _router(content: dict[str, Any]) -> str:
    kind, sees = content["router"]["kind"], content["router"]["sees"]
    return kind if sees == "timestep" else f"{kind} (sees {sees})"


def _layer_mean(runs: Sequence[dict[str, Any]], design: str, name: str) -> np.ndarray:
    """Each run's mean over the layers that have a value."""
    means = [[row[name] for row in run[design] if row[name] is not None] for run in runs]
    return np.array([np.mean(values) for values in means if values])


def _depend(runs: Sequence[dict[str, Any]]) -> str:
    found = sum(min(row["adjusted"] for row in run["crossed"]) < ALPHA for run in runs)
    return f"{found} of {len(runs)}" if runs else "–"


def _over_runs(values: np.ndarray, form: str) -> str:
    if not len(values):
        return "–"
    if len(values) < 2:
        return f"{values[0]:{form}}"
    error = f"{values.std(ddof=1) / len(values) ** 0.5:{form.lstrip('+')}}"
    return f"{values.mean():{form}} ±{error.removeprefix('0')}"


def _change(change: dict[str, Any]) -> str:
    low, high = (f"{change[name]:+.4f}" for name in ("low", "high"))
    return f"NELBO {change['mean']:+.4f} ± {change['standard_error']:.4f} nats per token (95 %: {low} to {high})"


def _with_error(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
