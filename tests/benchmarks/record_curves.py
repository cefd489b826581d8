"""Record the search benchmark's learning curves: a grid of real small runs, as one compact JSON file.

    python -m tests.benchmarks.record_curves [--workers 2] [--work FOLDER] [--out FILE]

Runs that FOLDER holds already are kept, so an interrupted recording goes on. Nine validations of every run are kept;
tests/benchmarks/search.py replays them.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import RunConfig, to_dict
from core.presets import preset
from core.settings import build

DATA = Path(__file__).parent / "data" / "curves.json"
LEARNING_RATE, LOAD_BALANCING, Z_LOSS, TOP_K = (
    "optimizer.learning_rate",
    "objective.load_balancing_weight",
    "objective.z_loss_weight",
    "model.top_k",
)
GRID: dict[str, tuple[float, ...]] = {
    LEARNING_RATE: (5e-4, 1.25e-3, 3e-3, 8e-3, 2e-2, 5e-2),
    LOAD_BALANCING: (0.0, 0.01, 0.1, 1.0),
    Z_LOSS: (0.0, 0.01),
    TOP_K: (1, 2),
}
SEEDS = (0, 1)
SETTINGS = {
    "data.corpus": "stdlib",
    "data.sequence_length": 64,
    "data.validation_sequences": 64,
    "model.hidden_size": 32,
    "model.num_layers": 2,
    "model.num_heads": 1,
    "model.head_dim": 32,
    "model.expert_width": 32,
    "trainer.steps": 216,
    "trainer.batch_size": 8,
    "trainer.validate_every": 24,
    "trainer.log_every": 72,
    "optimizer.warmup_steps": 20,
}


def config_of(cell: Sequence[float], seed: int) -> RunConfig:
    """The config of a grid cell, values in the order of GRID."""
    return build(to_dict(preset("tiny")), SETTINGS, dict(zip(GRID, cell, strict=True)), {"seed": seed})


def record_share(number: int, workers: int, work: Path) -> None:
    """Train every `workers`-th run of the grid that isn't recorded yet."""
    import torch

    from core import records
    from core.training.run import train

    torch.set_num_threads(1)
    runs = list(itertools.product(itertools.product(*GRID.values()), SEEDS))
    for index in range(number, len(runs), workers):
        folder = work / str(index)
        if not (folder / records.FILE_NAME).exists():
            train(config_of(*runs[index]), folder)
            (folder / "model.safetensors").unlink(missing_ok=True)


def gather(work: Path) -> dict[str, Any]:
    """The recorded grid as one document. NELBO by validation, null where a run failed: a divergence is data too."""
    from core import records

    runs = list(itertools.product(itertools.product(*GRID.values()), SEEDS))
    found = [records.read(work / str(index) / records.FILE_NAME) for index in range(len(runs))]
    tokens = next(record.validation["tokens"] for record in found if record.status == "complete")
    rows = []
    for record in found:
        column = record.validation.get("val/nelbo", []) if record.status == "complete" else []
        rows.append([round(value, 4) if math.isfinite(value) else None for value in column] or None)
    described = found[0].provenance
    return {
        "what": "val/nelbo in nats per token at each of `tokens`, for every grid cell (row-major) under every seed",
        "grid": GRID,
        "seeds": list(SEEDS),
        "tokens": tokens,
        "nelbo": rows,
        "recorded": time.strftime("%Y-%m-%d"),
        "git_commit": described.get("git_commit"),
        "packages": described.get("packages"),
        "data_fingerprint": found[0].data_fingerprint,
        "parameters": found[0].parameters,
        "settings": SETTINGS,
        "seconds_per_run": round(sum(record.wall_time_s for record in found) / len(found), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.record_curves", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/curves"))
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        record_share(options.share, options.workers, options.work)
        return
    command = [sys.executable, "-m", "tests.benchmarks.record_curves", "--workers", str(options.workers)]
    command += ["--work", str(options.work)]
    children = [subprocess.Popen([*command, "--share", str(share)]) for share in range(options.workers)]
    if any(child.wait() for child in children):
        raise SystemExit("a recording process failed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(gather(options.work), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
