"""Trainers that wait where a test wants to disturb them, whatever the machine's speed."""

import contextlib
import json
import os
import time
from pathlib import Path

from core.config.run import RunConfig, config_hash
from core.records import run_record
from core.training import preemption
from core.training.checkpoint_files import FOLDER, LATEST, saved_step
from core.training.preemption import TrainingPausedError
from tests.sweeps.search.trainers import landscape
from tests.sweeps.trainers import quick

CUTS = (9, 22)  # steps after which the disturbed run waits to be cut off
LIMIT_S = 300


def is_disturbed(config: RunConfig) -> bool:
    """The one run that is cut off: the first of a plan of seeds 0, 1, ..."""
    return config.seed == 0 and config.objective.load_balancing_weight > 0


class Cuts:
    """Notes every step that is trained, and at the first $CUTS of CUTS waits, in one run alone, for a request to pause."""

    def __init__(self, place: Path, config: RunConfig) -> None:
        self.place, self.config = place, config

    def log_metrics(self, metrics, step=None) -> None:
        if "train/nelbo" not in metrics:
            return
        with (self.place / config_hash(self.config)).open("a") as file:
            file.write(f"{step}\n")
        if is_disturbed(self.config) and step in CUTS[: int(os.environ["CUTS"])]:
            (self.place / f"at-{step}").touch()
            until = time.monotonic() + LIMIT_S
            while not preemption.requested() and time.monotonic() < until:
                time.sleep(0.02)


def cut(config, folder, *, loggers=(), study=None):
    """Real training."""
    from core.training.run import train  # seconds, which a task that trains nothing can do without

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


def halting(config, folder, *, study=None, until=None, **rest):
    """A search's landscape, disturbed once: $HALT=pause stops in the first training to the second rung until it is asked to
    pause, and saves step 7; $HALT=wait stops in the first training of all until a file named `go` is there."""
    place, disturbed = Path(os.environ["PLACE"]), until == 12 if os.environ["HALT"] == "pause" else until == 4
    limit = time.monotonic() + LIMIT_S
    with contextlib.suppress(FileExistsError):
        handle = os.open(place / "at", os.O_CREAT | os.O_EXCL | os.O_WRONLY) if disturbed else None
        if handle is not None and os.environ["HALT"] == "pause":
            _pause(config, folder, limit)
        elif handle is not None:
            os.write(handle, str(os.getpid()).encode())
            while not (place / "go").exists() and time.monotonic() < limit:
                time.sleep(0.02)
    return landscape(config, folder, study=study, until=until, **rest)


def _pause(config, folder, limit) -> None:
    with preemption.heeded():
        while not preemption.requested() and time.monotonic() < limit:
            time.sleep(0.02)
    with Path(os.environ["STEPS"]).open("a") as file:
        file.write(f"{config_hash(config)} {saved_step(folder)} 7 {os.getpid()}\n")
    run_record.write_atomically(folder / FOLDER / LATEST, json.dumps({"step": 7, "name": "step"}))
    raise TrainingPausedError
