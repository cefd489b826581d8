"""Trainers that wait where a test wants to disturb them, whatever the machine's speed."""

import os
import time
from pathlib import Path

from core.config import RunConfig, config_hash
from core.training import pausing
from core.training.run import train
from sweeps.loggers import RowLogger
from tests.sweeps.trainers import quick

CUTS = (15, 37, 61)
LIMIT_S = 300


def is_disturbed(config: RunConfig) -> bool:
    """The one run that is cut off: the first of a plan of seeds 0, 1, ..."""
    return config.seed == 0 and config.objective.load_balancing_weight > 0


class Cuts(RowLogger):
    """Notes every step that is trained, and at some waits, in the first run alone, for a request to pause."""

    def __init__(self, place: Path, config: RunConfig) -> None:
        super().__init__()
        self.place, self.config = place, config

    def log_metrics(self, metrics, step=None) -> None:
        if "train/nelbo" not in metrics:
            return
        with (self.place / config_hash(self.config)).open("a") as file:
            file.write(f"{step}\n")
        if is_disturbed(self.config) and step in CUTS:
            (self.place / f"at-{step}").touch()
            until = time.monotonic() + LIMIT_S
            while not pausing.requested() and time.monotonic() < until:
                time.sleep(0.02)


def cut(config, folder, *, loggers=(), study=None):
    """Real training."""
    return train(config, folder, loggers=[*loggers, Cuts(Path(os.environ["PLACE"]), config)], study=study)


def gated(config, folder, *, loggers=(), study=None):
    """A record at once, but in the disturbed run only once a file named `go` is there; each start is noted."""
    place = Path(os.environ["PLACE"])
    with (place / "starts").open("a") as file:
        file.write(f"{config_hash(config)} {os.getpid()} {config.seed}\n")
    until = time.monotonic() + LIMIT_S
    while is_disturbed(config) and not (place / "go").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return quick(config, folder, loggers=loggers, study=study)
