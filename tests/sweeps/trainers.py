"""Stand-ins for core.training.run.train, which workers find by name. What they do depends on the run and on files."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from core import records, spill
from core.config import config_hash, to_dict
from core.data.corpora import fingerprint
from core.records import RunRecord


def overwrite(record, folder):
    """Put a record in the place of one that is finished, which no product code does."""
    (folder / records.FILE_NAME).unlink(missing_ok=True)
    records.write(record, folder)


def quick(config, folder, *, loggers=(), study=None):
    """A complete record at once; its metric depends on the config alone."""
    record = RunRecord(
        status="complete",
        run_hash=config_hash(config),
        arm_hash=config_hash(config, with_seed=False),
        seed=config.seed,
        config=to_dict(config),
        metrics={"val/nelbo": 2.0 + config.seed + config.objective.load_balancing_weight},
        data_fingerprint=fingerprint(config.data),
        study=dict(study or {}),
    )
    spill.keep(record, folder)
    return record


def noisy(config, folder, *, loggers=(), study=None):
    """As quick, with noise of a thousandth that depends on the run; seed 2 without the loss fails where $FAILS is set."""
    weight = config.objective.load_balancing_weight
    if os.environ.get("FAILS") and config.seed == 2 and not weight:
        raise FloatingPointError("the loss is not finite at step 7")
    record = quick(config, folder, loggers=loggers, study=study)
    noise = random.Random(config_hash(config)).gauss(0, 1e-3)
    record = replace(record, metrics={"val/nelbo": 2.0 + config.seed + weight**2 + noise})
    overwrite(record, folder)
    return record


def slow(config, folder, *, loggers=(), study=None):
    """As quick, after $SLOW_S seconds of small steps, with its starts counted in $STARTS."""
    with Path(os.environ["STARTS"]).open("a") as file:
        file.write(f"{config_hash(config)} {os.getpid()}\n")
    (folder / "partial.bin").write_bytes(b"half")
    until = time.monotonic() + float(os.environ["SLOW_S"])
    step = 0
    while time.monotonic() < until:
        time.sleep(0.02)
        step += 1
        for logger in loggers:
            logger.log_metrics({"train/nelbo": 3.0}, min(step, config.trainer.steps))
    return quick(config, folder, loggers=loggers, study=study)


def failing(config, folder, *, loggers=(), study=None):
    """Raises for seed 1, unless a file named `mended` lies beside the study's folder."""
    if config.seed == 1 and not (folder.parents[2] / "mended").exists():
        raise FloatingPointError("the loss is not finite at step 7\nsecond line")
    return quick(config, folder, loggers=loggers, study=study)


def deadly(config, folder, *, loggers=(), study=None):
    """Kills its process in one arm, as the kernel does when memory runs out."""
    if config.objective.load_balancing_weight:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(config, folder, loggers=loggers, study=study)
