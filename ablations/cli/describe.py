"""`ablate describe`: what a config is, counted without allocating it."""

import argparse
import re
from typing import Any

from ablations.cli.terminal import show
from core.config.loading import parse_overrides
from core.config.presets import resolve
from core.config.run import RunConfig, to_dict
from core.model.flops import count, flops_per_token
from core.model.shapes import shapes
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import labelled


def run_describe(arguments: argparse.Namespace) -> int:
    """Print parameters, FLOPs per token and shapes of a preset or config file."""
    config = resolve(arguments.config, parse_overrides(arguments.settings))
    return show(describe(arguments.config, config), arguments, _print)


def describe(name: str, config: RunConfig) -> dict[str, Any]:
    """A config's parameters (total, active), FLOPs per token (training, forward), shapes and settings, JSON-ready."""
    training = flops_per_token(config)
    return {
        "name": name,
        "parameters": vars(count(config.model)),
        "flops_per_token": {"training": training, "forward": training / 3},
        "sequence_length": config.data.sequence_length,
        "shapes": {name: list(shape) for name, shape in shapes(config.model).items()},
        "config": to_dict(config),
    }


def _print(content: dict[str, Any], out: Terminal) -> None:
    sizes, flops = content["parameters"], content["flops_per_token"]
    out.print(line(content["name"], "bold") + line(f": {_kind(content['config']['model'])}"))
    out.print(
        f"{sizes['total']:,} parameters, {sizes['active']:,} active (the embedding table's rows are looked up and not "
        f"counted as active); {flops['training']:.3g} training FLOPs per token at length {content['sequence_length']}"
    )
    table = labelled("weight", "shape", left=("shape",))
    for pattern, shape, layers in _folded(content["shapes"]):
        table.add(f"{pattern} {layers}".strip(), " x ".join(map(str, shape)))
    out.print(table)


def _kind(model: dict[str, Any]) -> str:
    direction = "causal" if model["causal"] else "bidirectional"
    if not model["num_experts"]:
        return f"dense, {direction}"
    split = model["granularity"]
    chosen = f"{model['top_k'] * split} of {model['num_experts'] * split} experts a token"
    return f"mixture of experts, {chosen}, {direction}"


def _folded(shapes: dict[str, list[int]]) -> list[tuple[str, list[int], str]]:
    """Weights that layers have in common, once: (name, shape, which layers)."""
    folded: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in shapes.items():
        match = re.match(r"layers\.(\d+)\.", name)
        pattern = re.sub(r"^layers\.\d+\.", "layers.*.", name)
        folded.setdefault((pattern, tuple(shape)), []).append(int(match[1]) if match else -1)
    rows = []
    for (pattern, size), layers in folded.items():
        where = "" if layers == [-1] else f"({layers[0]}-{layers[-1]})" if len(layers) > 1 else f"({layers[0]})"
        rows.append((pattern, list(size), where))
    return rows
