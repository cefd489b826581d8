"""Record the search benchmark's learning curves: a grid of real small runs, as one compact JSON file.

    python -m tests.benchmarks.record_curves [--workers 2] [--work FOLDER] [--out FILE]

Runs that FOLDER holds already are kept, so an interrupted recording goes on. Nine validations of every run are kept;
tests/benchmarks/search.py replays them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.config.loading import build
from core.config.presets import preset
from core.config.run import RunConfig, to_dict
from core.records.run_record import RunRecord
from tests.benchmarks import recording

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
    "data.corpus": "stdlib", "data.sequence_length": 64, "data.validation_sequences": 64, "model.hidden_size": 32,
    "model.num_layers": 2, "model.num_heads": 1, "model.head_dim": 32, "model.expert_width": 32, "trainer.steps": 216,
    "trainer.batch_size": 8, "trainer.validate_every": 24, "trainer.log_every": 72, "optimizer.warmup_steps": 20,
}  # fmt: skip


def configs() -> list[RunConfig]:
    """The config of every grid cell, values in the order of GRID, under every seed."""
    cells = (
        build(to_dict(preset("tiny")), SETTINGS, dict(zip(GRID, cell, strict=True)))
        for cell in itertools.product(*GRID.values())
    )
    return [replace(cell, seed=seed) for cell in cells for seed in SEEDS]


def gather(found: Sequence[RunRecord]) -> dict[str, Any]:
    """The recorded grid as one document. NELBO by validation, null where a run failed: a divergence is data too."""
    tokens = next(record.validation["tokens"] for record in found if record.status == "complete")
    rows = []
    for record in found:
        column = record.validation.get("val/nelbo", []) if record.status == "complete" else []
        rows.append([round(value, 4) if math.isfinite(value) else None for value in column] or None)
    return {
        "what": "val/nelbo in nats per token at each of `tokens`, for every grid cell (row-major) under every seed",
        "grid": GRID,
        "seeds": list(SEEDS),
        "tokens": tokens,
        "nelbo": rows,
        "settings": SETTINGS,
        **recording.described(found),
    }


if __name__ == "__main__":
    recording.main("tests.benchmarks.record_curves", __doc__, configs(), DATA, gather)
