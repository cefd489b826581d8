"""Cost of routing telemetry: its share of a run's time, validations at the preset's interval and at every tenth step."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config.loading import build
from core.config.presets import preset
from core.config.run import to_dict
from core.training import callbacks, module
from core.training.run import train

CASES = {"tiny": {"trainer.steps": 200}, "proxy_3m": {"trainer.steps": 40, "trainer.validate_every": 20}}


def measure(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of telemetry, of a step's share of it, and of the whole run, by preset and round."""
    return {name: [_one(name, settings) for _ in range(rounds)] for name, settings in CASES.items()}


def _one(name: str, settings: dict[str, Any]) -> dict[str, float]:
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent += time.perf_counter() - began

        return wrapped

    config = build(to_dict(preset(name)), settings)
    observe, add, told = module.observe, callbacks.RoutingMemory.add, callbacks.RoutingMemory.to_dict
    module.observe = timed(observe)
    callbacks.RoutingMemory.add, callbacks.RoutingMemory.to_dict = timed(add), timed(told)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            record = train(config, Path(place))
            total = time.perf_counter() - began
    finally:
        module.observe = observe
        callbacks.RoutingMemory.add, callbacks.RoutingMemory.to_dict = add, told  # type: ignore[method-assign]
    assert record.status == "complete", record.reason
    return {"telemetry": spent, "total": total}
