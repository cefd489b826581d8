"""Training time of a plan, estimated from a few steps on this machine."""

import json
from collections.abc import Callable, Mapping, Sequence

import torch

from core.config.run import RunConfig, to_dict
from core.training.run import seconds_per_step
from sweeps.studies.plan import PlannedRun, Sweep

FORWARD_SHARE = 1 / 3  # a backward pass costs twice its forward pass


def total_s(seconds_per_run: Mapping[str, float], runs: Sequence[PlannedRun], workers: int) -> float:
    """Wall time for runs on that many workers, start-up of the workers left out. seconds_per_run: by arm name."""
    return sum(seconds_per_run[run.arm] for run in runs) / max(1, min(workers, len(runs)))


def calibrate(
    plan: Sweep, *, threads: int | None = None, measure: Callable[[RunConfig], float] = seconds_per_step
) -> dict[str, float]:
    """Seconds that one run of each arm takes, by a few steps of each arm whose computation differs from the others'.

    threads: CPU threads that a worker will have; None = as many as torch uses now.
    """
    before = torch.get_num_threads()
    per_step: dict[str, float] = {}
    seconds: dict[str, float] = {}
    try:
        torch.set_num_threads(threads or before)
        for run in plan.runs:
            if run.arm in seconds:
                continue
            seconds[run.arm] = 0.0
            for config in (run.config, *([run.first] if run.first else [])):
                shape = _compute_shape(config)
                if shape not in per_step:
                    per_step[shape] = measure(config)
                seconds[run.arm] += per_step[shape] * _steps(config)
    finally:
        torch.set_num_threads(before)
    return seconds


def _steps(config: RunConfig) -> float:
    """Training steps of a run, and its validations in units of them."""
    trainer, data = config.trainer, config.data
    every = trainer.validate_every or trainer.steps
    validations = -(-trainer.steps // every)
    return trainer.steps + FORWARD_SHARE * validations * data.validation_sequences / trainer.batch_size


def _compute_shape(config: RunConfig) -> str:
    """Key of what a step's time depends on: not the seed, nor weights of losses, nor the optimizer's settings."""
    content = to_dict(config)
    trainer, objective = content["trainer"], content["objective"]
    used = [trainer[name] for name in ("batch_size", "accelerator", "precision", "compile")]
    used += [objective["kind"], config.tokens_per_step, content["data"]["sequence_length"]]
    return json.dumps((content["model"], used))
