"""The learning rate over a run. Light: what is checked before training must not import what trains."""

import math

from core.config.run import RunConfig, decay_steps


def learning_rate_factor(config: RunConfig, step: int) -> float:
    """Share of the peak learning rate at a step: up over the warm-up, then as optimizer.schedule says."""
    settings, steps = config.optimizer, config.trainer.steps
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    falling = decay_steps(config) if settings.schedule == "wsd" else max(1, steps - settings.warmup_steps)
    progress = min(1.0, max(0.0, (step - (steps - falling)) / falling))
    left = 1 - progress if settings.schedule == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    return settings.final_lr_fraction + (1 - settings.final_lr_fraction) * left
