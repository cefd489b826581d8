"""Stand-ins for core.training.run.train with a known landscape: the best learning rate is 3e-3, the best weight 0.01."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from core.config.run import config_hash
from core.records import run_record
from core.training.checkpoint_files import FOLDER, LATEST, saved_step
from tests.sweeps.trainers import record_of


def loss_of(config, step: int) -> float:
    """A learning curve that falls with steps, faster at good settings; seeds shift all configurations alike."""
    rate = math.log10(config.optimizer.learning_rate / 3e-3) ** 2
    weight = config.objective.load_balancing_weight
    balance = 0.3 if weight == 0 else 0.1 * math.log10(weight / 0.01) ** 2
    router = 0.2 if config.model.router.kind == "bias_balanced" else 0.0
    return 2 + rate + balance + router + 1 / (1 + step) + 0.01 * config.seed + 0.05 * (config.model.top_k - 2) ** 2


def landscape(config, folder, *, loggers=(), study=None, until=None, bound=0.5):
    """A record at once, with the steps that it trained appended to $STEPS where that is set. bound: rates above diverge."""
    start, end = saved_step(folder) or 0, until or config.trainer.steps
    if "STEPS" in os.environ:
        with Path(os.environ["STEPS"]).open("a") as file:
            file.write(f"{config_hash(config)} {start} {end} {os.getpid()}\n")
    every = config.trainer.validate_every
    steps = [float(step) for step in range(every, end + 1, every)]
    tokens = [step * config.tokens_per_step for step in steps]
    values = [loss_of(config, int(step)) for step in steps]
    if config.optimizer.learning_rate > bound:
        raise FloatingPointError(f"the loss is not finite at step {start + 1}")
    record = replace(
        record_of(config, study),
        status="paused" if until else "complete",
        metrics={"val/nelbo": values[-1], "load/max_vio": config.objective.load_balancing_weight},
        validation={"step": steps, "tokens": tokens, "val/nelbo": values},
    )
    if until:
        run_record.write_atomically(folder / FOLDER / LATEST, json.dumps({"step": until, "name": "step"}))
    run_record.write(record, folder)
    return record


def sluggish(config, folder, **rest):
    """As landscape, after 30 ms."""
    time.sleep(0.03)
    return landscape(config, folder, **rest)


def deadly(config, folder, **rest):
    """As landscape, but the first five trainings to begin kill their process, as the kernel does without memory."""
    deaths = Path(os.environ["DEATHS"])
    with deaths.open("a") as file:
        file.write("x")
    if deaths.stat().st_size in (2, 5):
        os.kill(os.getpid(), signal.SIGKILL)
    return landscape(config, folder, **rest)
