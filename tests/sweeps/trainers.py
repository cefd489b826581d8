"""Stand-ins for core.training.run.train, which workers find by name. What they do depends on the run and on files."""

import contextlib
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from core.config.run import config_hash, to_dict
from core.data.inputs import fingerprint
from core.records import fencing, pending_record, run_record
from core.records.run_record import RunRecord
from core.training.checkpoint_files import WEIGHTS


def overwrite(record, folder):
    """Put a record in the place of one that is finished, which no product code does."""
    (folder / run_record.FILE_NAME).unlink(missing_ok=True)
    run_record.write(record, folder)


def record_of(config, study=None, **more):
    """A complete record; its metric depends on the config alone."""
    return RunRecord(
        status="complete",
        run_hash=config_hash(config),
        arm_hash=config_hash(config, with_seed=False),
        seed=config.seed,
        config=to_dict(config),
        metrics={"val/nelbo": 2.0 + config.seed + config.objective.load_balancing_weight},
        data_fingerprint=fingerprint(config),
        study=dict(study or {}),
        **more,
    )


def quick(config, folder, *, loggers=(), study=None):
    """A complete record at once."""
    record = record_of(config, study)
    pending_record.keep(record, folder)
    return record


def noisy(config, folder, *, loggers=(), study=None):
    """As quick, with noise of a thousandth that depends on the run; seed 2 without the loss fails where $FAILS is set."""
    weight = config.objective.load_balancing_weight
    if os.environ.get("FAILS") and config.seed == 2 and not weight:
        raise FloatingPointError("the loss is not finite at step 7")
    noise = random.Random(config_hash(config)).gauss(0, 1e-3)
    record = replace(record_of(config, study), metrics={"val/nelbo": 2.0 + config.seed + weight**2 + noise})
    pending_record.keep(record, folder)
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


@contextlib.contextmanager
def sleeping(first):
    """Inside, the `first` worker of all stops itself right before the system call that gives the file $SLEEP_AT its name.

    $ASLEEP then holds its pid. Yields what stops it there and then.
    """
    asleep, at = Path(os.environ["ASLEEP"]), os.environ["SLEEP_AT"]

    def sleep():
        asleep.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    def sleeping_before(call):
        def called(source, target):
            if first and Path(target).name == at and not asleep.exists():
                sleep()
            return call(source, target)

        return called

    with mock.patch.multiple(os, replace=sleeping_before(os.replace), link=sleeping_before(os.link)):
        yield sleep


def is_first(config):
    """Whether this is the control's first training."""
    return bool(config.objective.load_balancing_weight) and not Path(os.environ["ASLEEP"]).exists()


def sleepy(config, folder, *, loggers=(), study=None):
    """Leaves weights of its own and a record of them; the control's first training falls asleep at $SLEEP_AT.

    That is a file's name, or "row": before the first row is logged; or "told": once the record is there. The control's
    others wait for the file $GATE, where that is set.
    """
    first, at, gate = is_first(config), os.environ["SLEEP_AT"], os.environ.get("GATE")
    with sleeping(first) as sleep:
        if first and at == "row":
            sleep()
        for step in range(1, 4):
            for logger in loggers:
                logger.log_metrics({"train/nelbo": 3.0}, step)
        while gate and config.objective.load_balancing_weight and not Path(gate).exists():
            time.sleep(0.01)
        weights = f"{os.getpid()} {time.time_ns()}".encode()
        partial = fencing.partial_of(folder / WEIGHTS)
        partial.write_bytes(weights)
        fencing.move_in(partial, folder / WEIGHTS)
        record = record_of(config, study, provenance={"weights_sha256": run_record.digest(weights), "pid": os.getpid()})
        pending_record.keep(record, folder)
        if first and at == "told":
            sleep()
    return record


def sleepy_training(config, folder, **rest):
    """As sleepy, and really trained."""
    from core.training.run import train

    with sleeping(is_first(config)):
        return train(config, folder, **rest)
