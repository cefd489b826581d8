"""Cost of DeepSpeed's engine: seconds of a step with it and without, and of expert parallelism beside replicas.

    python -m tests.benchmarks.engine FOLDER

trains as one rank (core.training.rank_launcher starts it) and leaves FOLDER/seconds.json: a step's median time on rank 0.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning

from core.config.loading import build, load
from core.config.run import to_yaml
from core.runtime.child_process import leave_with_parent, take_events_pipe
from core.runtime.ranks import Ranks
from core.training.rank_launcher import launch
from core.training.run import attempt

# name: (devices, settings); the engine's cost is read off one process, expert parallelism's off two.
CONTESTANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (1, {}),
    "engine, ZeRO-0": (1, {"trainer.strategy": "deepspeed", "deepspeed.stage": 0}),
    "engine, ZeRO-2": (1, {"trainer.strategy": "deepspeed", "deepspeed.stage": 2}),
    "2 replicas": (2, {"trainer.strategy": "deepspeed", "deepspeed.stage": 2}),
    "2 expert-parallel": (2, {"trainer.strategy": "deepspeed", "deepspeed.stage": 2, "deepspeed.expert_parallel": 2}),
}
RATIOS = (
    ("engine, ZeRO-0", "plain"),
    ("engine, ZeRO-2", "plain"),
    ("2 expert-parallel", "2 replicas"),
    ("2 replicas", "plain"),
)
SHAPE = {
    "data.corpus": "markov", "data.sequence_length": 256, "data.validation_sequences": 16, "model.hidden_size": 256,
    "model.num_layers": 4, "model.num_heads": 4, "model.head_dim": 64, "model.num_experts": 16, "model.expert_width": 256,
    "trainer.steps": 14, "trainer.batch_size": 16, "trainer.validate_every": 0, "trainer.log_every": 7,
}  # fmt: skip
WARM_UP = 4


class StepTimer(lightning.Callback):
    """Seconds between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Each contestant's seconds per step and bytes per step, in turns."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "bytes": []} for name in CONTESTANTS}
    for _ in range(rounds):
        for name, (devices, changes) in CONTESTANTS.items():
            with tempfile.TemporaryDirectory() as place:
                folder, config = Path(place), build(SHAPE, changes)
                (folder / "config.yaml").write_text(to_yaml(config))
                record = launch(config, folder, devices, program="tests.benchmarks.engine")
                found[name]["seconds"].append(json.loads((folder / "seconds.json").read_text()))
                found[name]["bytes"].append(record.curve.get("train/all_to_all_bytes", [0.0])[-1])
    return found


def main(folder: Path) -> None:
    """Train as one rank and say how long its steps took."""
    emit = take_events_pipe()
    leave_with_parent(sys.stdin.fileno())
    config, timer = load(folder / "config.yaml"), StepTimer()
    ranks = Ranks.of_environment(config.deepspeed.expert_parallel)
    record = attempt(config, folder, ranks=ranks, callbacks=[timer])
    if ranks.rank == 0:
        steps = [after - before for before, after in zip(timer.ends, timer.ends[1:], strict=False)]
        (folder / "seconds.json").write_text(json.dumps(statistics.median(steps[WARM_UP:])))
    emit(event="record", record=record.to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
