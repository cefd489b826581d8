"""Side-by-side timing: every contestant does the same work, in turns, in one process; what counts are ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(contestants: Mapping[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median of the rounds' ratios, and their lower and upper quartile."""
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), ratios[quarter], ratios[-1 - quarter]


def cell(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
