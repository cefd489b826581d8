"""Record the adaptive benchmark's studies: every arm of three questions under 10 seeds, real small runs, as one JSON file.

    python -m tests.benchmarks.record_blocks [--workers 2] [--work FOLDER] [--out FILE]

tests/benchmarks/adaptive.py replays them.
"""

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

DATA = Path(__file__).parent / "data" / "blocks.json"
SEEDS = tuple(range(10))
SETTINGS = {
    "data.corpus": "stdlib", "data.sequence_length": 64, "data.validation_sequences": 128, "model.hidden_size": 32,
    "model.num_layers": 2, "model.num_heads": 1, "model.head_dim": 32, "model.expert_width": 32, "trainer.steps": 150,
    "trainer.batch_size": 8, "trainer.validate_every": 150, "trainer.log_every": 75, "optimizer.warmup_steps": 20,
    "optimizer.learning_rate": 5e-3,
}  # fmt: skip
KIND, RATE = "model.router.kind", "optimizer.learning_rate"
BALANCE, TOP_K = "objective.load_balancing_weight", "model.top_k"
KINDS = ("topk", "random", "hash", "expert_choice", "adaptive_k", "soft", "film", "additive", "bias_balanced")
# By question, its arms; the first is the control.
QUESTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "router": tuple({KIND: kind} for kind in KINDS),
    "learning rate": tuple({RATE: rate} for rate in (5e-3, 1e-3, 2.5e-3, 4e-3, 6e-3, 1e-2)),
    "load balancing and top-k": (
        *({BALANCE: weight, TOP_K: 2} for weight in (0.01, 0.0, 0.1, 1.0)),
        *({BALANCE: 0.01, TOP_K: k} for k in (1, 4)),
    ),
}


def cells() -> list[tuple[str, int, int]]:
    """Question, arm and seed of every run, block by block."""
    return [(question, arm, seed) for seed in SEEDS for question, arms in QUESTIONS.items() for arm in range(len(arms))]


def configs() -> list[RunConfig]:
    """The config of every cell."""
    arms = {
        (question, place): build(to_dict(preset("tiny")), SETTINGS, arm)
        for question, arms in QUESTIONS.items()
        for place, arm in enumerate(arms)
    }
    return [replace(arms[question, arm], seed=seed) for question, arm, seed in cells()]


def gather(found: Sequence[RunRecord]) -> dict[str, Any]:
    """NELBO by question, seed and arm; null where a run failed."""
    values = {question: [[None] * len(arms) for _ in SEEDS] for question, arms in QUESTIONS.items()}
    for (question, arm, seed), record in zip(cells(), found, strict=True):
        value = record.metrics.get("val/nelbo", math.nan) if record.status == "complete" else math.nan
        values[question][SEEDS.index(seed)][arm] = round(value, 5) if math.isfinite(value) else None  # type: ignore[call-overload]
    return {
        "what": "final val/nelbo in nats per token, by question, for every seed (rows) and arm (columns, control first)",
        "arms": QUESTIONS,
        "seeds": list(SEEDS),
        "nelbo": values,
        "settings": SETTINGS,
        **recording.described(found),
    }


if __name__ == "__main__":
    recording.main("tests.benchmarks.record_blocks", __doc__, configs(), DATA, gather)
