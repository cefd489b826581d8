"""Stand-ins for core.training.run.train, which workers find by name. What they do depends on the run and on files."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from core import fencing, records, spill
from core.config import config_hash, to_dict
from core.data.corpora import fingerprint
from core.records import RunRecord
from core.training.saved import WEIGHTS


def overwrite(record, folder):
    """Put a record in the place of one that is finished, which no product code does."""
    (folder / records.FILE_NAME).unlink(missing_ok=True)
    records.write(record, folder)


def record_of(config, study=None, **more):
    """A complete record; its metric depends on the config alone."""
    return RunRecord(
        status="complete",
        run_hash=config_hash(config),
        arm_hash=config_hash(config, with_seed=False),
        seed=config.seed,
        config=to_dict(config),
        metrics={"val/nelbo": 2.0 + config.seed + config.objective.load_balancing_weight},
        data_fingerprint=fingerprint(config.data),
        study=dict(study or {}),
        **more,
    )


def quick(config, folder, *, loggers=(), study=None):
    """A complete record at once."""
    record = record_of(config, study)
    spill.keep(record, folder)
    return record


def noisy(config, folder, *, loggers=(), study=None):
    """As quick, with noise of a thousandth that depends on the run; seed 2 without the loss fails where $FAILS is set."""
    weight = config.objective.load_balancing_weight
    if os.environ.get("FAILS") and config.seed == 2 and not weight:
        raise FloatingPointError("the loss is not finite at step 7")
    noise = random.Random(config_hash(config)).gauss(0, 1e-3)
    record = replace(record_of(config, study), metrics={"val/nelbo": 2.0 + config.seed + weight**2 + noise})
    spill.keep(record, folder)
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


def sleepy(config, folder, *, loggers=(), study=None):
    """Leaves weights of its own and a record of them; of the control's trainings, the first stops itself at $SLEEP_AT.

    That is "row", before the first row is logged; "told", once the record is there; or a file's name: between the last look
    at whose run it is and the system call that gives the file its name. $ASLEEP then holds the pid. With $GATE, the
    control's others wait for that file.
    """
    asleep, at = Path(os.environ["ASLEEP"]), os.environ["SLEEP_AT"]
    control = bool(config.objective.load_balancing_weight)
    first = control and not asleep.exists()

    def sleep():
        asleep.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    def sleeping_before(call):
        def stopped(source, target):
            if first and Path(target).name == at and not asleep.exists():
                sleep()
            return call(source, target)

        return stopped

    with mock.patch.multiple(os, replace=sleeping_before(os.replace), link=sleeping_before(os.link)):
        if first and at == "row":
            sleep()
        for step in range(1, 4):
            for logger in loggers:
                logger.log_metrics({"train/nelbo": 3.0}, step)
        while control and not first and "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
            time.sleep(0.01)
        weights = f"{os.getpid()} {time.time_ns()}".encode()
        partial = fencing.partial_of(folder / WEIGHTS)
        partial.write_bytes(weights)
        fencing.move_in(partial, folder / WEIGHTS)
        record = record_of(config, study, provenance={"weights_sha256": records.digest(weights), "pid": os.getpid()})
        spill.keep(record, folder)
        if first and at == "told":
            sleep()
    return record
