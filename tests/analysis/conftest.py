"""Made-up records whose truth is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.records.run_record import RunRecord

METRIC = "val/nelbo"


def make_design(arms: int = 3, seeds: int = 6, **changes: Any) -> dict[str, Any]:
    names = ["control", *(f"arm{i}" for i in range(1, arms))]
    return {
        "ablation": "toy", "size": "full", "question": "Does it matter?", "base": "tiny", "metric": METRIC,
        "secondary": ["load/max_vio"], "margin": 0.02, "alpha": 0.05, "power": 0.8, "control": "control",
        "seeds": list(range(seeds)), "factors": [{"key": "model.top_k", "label": "top-k", "levels": [1, 2]}],
        "arms": [
            {"name": name, "label": f"{name} label", "settings": {}, "hash": f"hash-{name}",
             "parameters": {"total": 1000, "active": 500}, "flops_per_token": 1e3}
            for name in names
        ],
        "overrides": [], "data_fingerprint": "toy:1", "command": "ablate run toy", **changes,
    }  # fmt: skip


def make_record(design: dict[str, Any], arm: str, seed: int, effect: float = 0.0, noise: float = 0.01) -> RunRecord:
    place = [a["name"] for a in design["arms"]].index(arm)
    block = np.random.default_rng(seed).normal(3, 0.3)  # what all arms of a seed share
    value = block + effect + np.random.default_rng((seed, place, 7)).normal(0, noise)
    steps = [10.0, 20.0, 30.0]
    rng = np.random.default_rng((seed, place))
    return RunRecord(
        status="complete",
        run_hash=f"{arm}-{seed}",
        arm_hash=f"hash-{arm}",
        seed=seed,
        config={
            "seed": seed,
            "trainer": {"steps": 30, "batch_size": 4},
            "data": {"sequence_length": 8, "corpus": "markov"},
        },
        metrics={METRIC: value, "load/max_vio": float(rng.uniform(0.5, 1))},
        curve={
            "step": steps,
            "tokens": steps,
            "train/load_balancing": [1.2, 1.1, 1.0],
            "train/z_loss": [3.0, 2.0, 1.0],
        },
        validation={"step": steps, "tokens": steps, METRIC: [value + 1, value + 0.5, value], "load/max_vio": [1, 1, 1]},
        expert_load={"step": [10, 20, 30], "load": rng.dirichlet(np.ones(8), (3, 4)).tolist()},
        data_fingerprint="toy:1",
        wall_time_s=1.0,
        provenance={"git_commit": "abc", "packages": {"torch": "2"}},
        finished_at=f"2026-01-01T00:00:{seed:02d}+00:00",
        study={"ablation": "toy", "size": "full", "arm": arm, "design": design},
    )


@pytest.fixture
def records_of() -> Callable[..., list[RunRecord]]:
    def build(design: dict[str, Any], effects: dict[str, float] | None = None, noise: float = 0.01) -> list[RunRecord]:
        return [
            make_record(design, arm["name"], seed, (effects or {}).get(arm["name"], 0.0), noise)
            for arm in design["arms"]
            for seed in design["seeds"]
        ]

    return build
