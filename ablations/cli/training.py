"""`ablate train`: one run from a config file or a preset."""

import argparse
import itertools
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from core.config import RunConfig, config_hash
from core.data.corpora import fingerprint
from core.presets import resolve
from core.records import FILE_NAME
from core.settings import parse_overrides
from core.training.run import check, train
from sweeps.plan import Plan, PlannedRun
from sweeps.tracking import WandbTracker, run_id


class ConsoleLogger(Logger):
    """One plain line per logged row."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    @property
    def name(self) -> str:
        return "console"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        """Nothing: the config file says it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        names = ("train/nelbo", "val/nelbo", "val/bits_per_byte", "load/max_vio")
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        print(f"step {step}/{self.steps}  {shown}", flush=True)


def run_train(arguments: argparse.Namespace) -> int:
    """Train one run and say where its record lies."""
    config = resolve(arguments.config, parse_overrides(arguments.settings))
    check(config)
    folder = _fresh_folder(arguments.out / "train" / config_hash(config))
    tracker = _tracker(config, folder)
    record = train(config, folder, loggers=[ConsoleLogger(config.trainer.steps), tracker])
    tracker.finish(record)
    print(f"record: {folder / 'record.json'}")
    if record.status == "failed":
        print(f"ablate: the run failed: {record.reason}", file=sys.stderr)
        return 1
    print(f"train it further or elsewhere: ablate train {shlex.quote(str(folder / 'config.yaml'))}")
    return 0


def _fresh_folder(folder: Path) -> Path:
    """The folder, or one beside it: a record that is there is never written over."""
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    return next(candidate for candidate in candidates if not (candidate / FILE_NAME).exists())


def _tracker(config: RunConfig, folder: Path) -> WandbTracker:
    """W&B shows a single run as a sweep of one."""
    run = PlannedRun(
        arm="single",
        settings={},
        config=config,
        run_hash=config_hash(config),
        arm_hash=config_hash(config, with_seed=False),
        fingerprint=fingerprint(config.data),
    )
    plan = Plan(name="train", size="full", design={"control": ""}, runs=(run,))
    return WandbTracker(plan, run, folder, run_id(run, uuid.uuid4().hex, 0))
