"""How to share a machine's cores among runs: measured, in processes side by side, as the runs would be."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.config import RunConfig, to_dict
from core.errors import UserError

STEPS = 6


@dataclass(frozen=True)
class Packing:
    """So many workers with so many CPU threads each make so many training steps per second together."""

    workers: int
    threads: int
    steps_per_second: float


def measure_packings(config: RunConfig, cores: Sequence[int]) -> list[Packing]:
    """Time one worker on all cores, one worker per core, and powers of two in between; the fastest comes first.

    Raises UserError when a process that measures ends without an answer.
    """
    counts = sorted({1, len(cores), *(2**n for n in range(1, len(cores).bit_length()) if 2**n < len(cores))})
    measured = [_measure(config, cores, workers) for workers in counts]
    return sorted(measured, key=lambda packing: -packing.steps_per_second)


def _measure(config: RunConfig, cores: Sequence[int], workers: int) -> Packing:
    shares = [list(cores[number::workers]) for number in range(workers)]
    command = [sys.executable, "-m", "sweeps.packing", json.dumps(to_dict(config))]
    processes = [
        subprocess.Popen([*command, json.dumps(share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for share in shares
    ]
    try:
        for process in processes:  # all are loaded before any begins
            if _line(process) != "ready":
                raise UserError("--workers auto: a measuring process ended early; name a number of workers instead")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        seconds = [float(_line(process) or "nan") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return Packing(workers, len(shares[0]), sum(1 / each for each in seconds))


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def best_workers(
    config: RunConfig, cores: Sequence[int], measure: Callable[..., list[Packing]] = measure_packings
) -> Packing:
    """The packing that makes most steps per second."""
    return measure(config, cores)[0]


def main(arguments: list[str]) -> None:
    """One measuring process: load, say "ready", wait for a line, print the median seconds of a step."""
    import torch

    from core.settings import build
    from core.training.run import seconds_per_step

    config, cores = build(json.loads(arguments[0])), json.loads(arguments[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    seconds_per_step(config, steps=1)
    print("ready", flush=True)
    sys.stdin.readline()
    print(seconds_per_step(config, steps=STEPS), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
