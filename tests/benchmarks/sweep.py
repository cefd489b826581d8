"""Overhead of the platform, beside a loop of processes and beside Optuna with Lightning, on the same runs.

    python -m tests.benchmarks.sweep train CONFIG.json FOLDER     one run, as a script of one's own would do it
    python -m tests.benchmarks.sweep optimize FOLDER RUNS         runs under study.optimize until none is left

are what the peers' processes do. SECONDS of a run are short here; what the platform costs doesn't depend on them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import optuna
import torch

from core.config.loading import build
from core.config.run import RunConfig, to_dict
from core.records import pending_record, run_record
from core.runtime.child_process import SOURCE_ROOT
from core.training.run import attempt, train
from sweeps.launch.local import run
from sweeps.studies.ablation import Ablation
from sweeps.studies.factors import Factor
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan

WORKERS = 2
SETTINGS = {
    "data.corpus": "markov", "data.sequence_length": 64, "data.validation_sequences": 16, "model.hidden_size": 64,
    "model.num_heads": 2, "model.head_dim": 32, "model.num_layers": 2, "model.num_experts": 4, "model.expert_width": 32,
    "trainer.steps": 300, "trainer.batch_size": 8, "trainer.validate_every": 150, "trainer.log_every": 30,
}  # fmt: skip
TIMES = "ABLATE_BENCH_TIMES"


def declared(seeds: int) -> Plan:
    """The runs that all contestants train."""
    ablation = Ablation(
        question="Does the load-balancing loss lower the NELBO?",
        base="tiny",
        factors=(Factor("objective.load_balancing_weight", (0.0, 0.01)),),
        control={"objective.load_balancing_weight": 0.01},
        settings=SETTINGS,
        seeds=range(seeds),
    )
    return plan("bench", ablation)


def measure(rounds: int, seeds: int) -> dict[str, list[float]]:
    """Wall seconds of the sweep by contestant, in turns."""
    planned = declared(seeds)
    found: dict[str, list[float]] = {"ours": [], "loop of processes": [], "study.optimize": []}
    contestants = {"ours": _ours, "loop of processes": _loop, "study.optimize": _optimize}
    for _ in range(rounds):
        for name, sweep in contestants.items():
            with tempfile.TemporaryDirectory() as place:
                began = time.perf_counter()
                sweep(planned, Path(place))
                found[name].append(time.perf_counter() - began)
                done = len(list(Path(place).rglob(run_record.FILE_NAME)))
                assert done == len(planned.runs), f"{name}: {done} records of {len(planned.runs)}"
    return found


def _ours(planned: Plan, out: Path) -> None:
    summary = run(planned, out, workers=WORKERS)
    assert summary.done == len(planned.runs)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE_ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _loop(planned: Plan, out: Path) -> None:
    """A process a run, as many side by side as workers: what `xargs -P` makes of a training script."""
    waiting, active = list(planned.runs), []
    while waiting or active:
        while waiting and len(active) < WORKERS:
            chosen = waiting.pop(0)
            folder = out / chosen.arm / str(chosen.seed)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(to_dict(chosen.config)))
            command = [sys.executable, "-m", __spec__.name, "train", str(folder / "config.json"), str(folder)]
            active.append(subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL))
        active[0].wait(0.01) if active[0].poll() is not None else time.sleep(0.01)
        assert all(process.returncode in (None, 0) for process in active)
        active = [process for process in active if process.poll() is None]


def _optimize(planned: Plan, out: Path) -> None:
    """Long-lived processes under study.optimize, each run enqueued as a trial."""
    (out / "runs.json").write_text(json.dumps([to_dict(each.config) for each in planned.runs]))
    study = optuna.create_study(study_name="bench", storage=_journal(out))
    for index in range(len(planned.runs)):
        study.enqueue_trial({"index": index})
    share = len(planned.runs) // WORKERS
    command = [sys.executable, "-m", __spec__.name, "optimize", str(out), str(share)]
    processes = [subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL) for _ in range(WORKERS)]
    assert [process.wait() for process in processes] == [0] * WORKERS


def _journal(out: Path) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "optuna.log")))


def optimize(out: Path, runs: int) -> None:
    """One of the processes of `_optimize`."""
    configs = [build(config) for config in json.loads((out / "runs.json").read_text())]

    def objective(trial: optuna.Trial) -> float:
        index = trial.suggest_int("index", 0, len(configs) - 1)
        return train(configs[index], out / str(index)).metrics["val/nelbo"]

    optuna.load_study(study_name="bench", storage=_journal(out)).optimize(objective, n_trials=runs)


class Moments(lightning.Callback):
    """When a run's first step began and its last one ended."""

    def __init__(self) -> None:
        self.first, self.last = 0.0, 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.first = self.first or time.time()

    def on_train_end(self, *arguments: Any) -> None:
        self.last = time.time()


def timed(config: RunConfig, folder: Path, *, loggers: Any = (), study: Any = None) -> run_record.RunRecord:
    """core.training.run.train, noting when it was entered, began to train, stopped training and was left."""
    entered, moments = time.time(), Moments()
    record = attempt(config, folder, loggers=loggers, callbacks=[moments])
    pending_record.keep(record, folder)
    row = {"pid": os.getpid(), "entered": entered, "first": moments.first, "last": moments.last, "left": time.time()}
    with Path(os.environ[TIMES]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    return record


def warm_starts(seeds: int) -> dict[str, float]:
    """Median seconds that warm workers spend between runs and within them beside training.

    start: from the end of a run (its record written) to the first step of the next: telling, W&B, the claim, the model.
    beside: what of the time between two ends of runs isn't training or validation.
    """
    planned = declared(seeds)
    with tempfile.TemporaryDirectory() as place:
        os.environ[TIMES] = str(Path(place) / "times")
        run(planned, Path(place) / "out", workers=WORKERS, trainer=f"{__spec__.name}:timed")
        rows = [json.loads(line) for line in Path(os.environ.pop(TIMES)).read_text().splitlines()]
    by_worker: dict[int, list[dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: row["entered"]):
        by_worker.setdefault(row["pid"], []).append(row)
    pairs = [pair for own in by_worker.values() for pair in zip(own, own[1:], strict=False)]
    return {
        "start": statistics.median(now["first"] - before["left"] for before, now in pairs),
        "between": statistics.median(now["entered"] - before["left"] for before, now in pairs),
        "beside": statistics.median(
            now["left"] - before["left"] - (now["last"] - now["first"]) for before, now in pairs
        ),
        "training": statistics.median(now["last"] - now["first"] for _, now in pairs),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "train":
        train(build(json.loads(Path(sys.argv[2]).read_text())), Path(sys.argv[3]))
    else:
        optimize(Path(sys.argv[2]), int(sys.argv[3]))
