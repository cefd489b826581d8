"""Trainers that wait where a test wants to disturb them, whatever the machine's speed."""

import os
import time
from pathlib import Path

from core.config import config_hash
from core.training import pausing
from core.training.run import train
from sweeps.loggers import RowLogger
from tests.sweeps.trainers import quick

CUTS = (15, 37, 61)
LIMIT_S = 300


class Cuts(RowLogger):
    """Notes every step that is trained, and at some waits, in the first run alone, for a request to pause."""

    def __init__(self, place: Path, seed: int) -> None:
        super().__init__()
        self.place, self.seed = place, seed

    def log_metrics(self, metrics, step=None) -> None:
        if "train/nelbo" not in metrics:
            return
        with (self.place / f"steps-{self.seed}").open("a") as file:
            file.write(f"{step}\n")
        if self.seed == 0 and step in CUTS:
            (self.place / f"at-{step}").touch()
            until = time.monotonic() + LIMIT_S
            while not pausing.requested() and time.monotonic() < until:
                time.sleep(0.02)


def cut(config, folder, *, loggers=(), study=None):
    """Real training."""
    return train(config, folder, loggers=[*loggers, Cuts(Path(os.environ["PLACE"]), config.seed)], study=study)


def gated(config, folder, *, loggers=(), study=None):
    """A record at once, but in the run of seed 0 only once a file named `go` is there; each start is noted."""
    place = Path(os.environ["PLACE"])
    with (place / "starts").open("a") as file:
        file.write(f"{config_hash(config)} {os.getpid()} {config.seed}\n")
    until = time.monotonic() + LIMIT_S
    while config.seed == 0 and not (place / "go").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return quick(config, folder, loggers=loggers, study=study)
