"""Packing of runs on a machine's cores and GPUs, by measuring processes side by side."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.config.run import RunConfig, to_dict
from core.errors import UserError
from core.runtime.child_process import BRIEF_SPINNING, import_path, module_command

STEPS = 6
MOST_PER_GPU = 16
GAIN = 1.05  # more processes on a GPU must make so many times the steps, or the search ends


@dataclass(frozen=True)
class Share:
    """Resources of one worker: CPU cores, and a GPU (which others may have too) or none."""

    cores: tuple[int, ...]
    gpu: str | None = None


# Seconds of a step of each of the processes that train side by side; None when one of them ended early.
Timing = Callable[[RunConfig, Sequence[Share]], list[float] | None]


@dataclass(frozen=True)
class Packing:
    """So many workers with so many CPU threads each make so many training steps per second together."""

    workers: int
    threads: int
    steps_per_second: float


def time_side_by_side(config: RunConfig, shares: Sequence[Share]) -> list[float] | None:
    """Train a few steps in one process for each share, all at the same time."""
    command = module_command("sweeps.runs.packing", json.dumps(to_dict(config)))
    processes = [
        subprocess.Popen(
            [*command, json.dumps(share.cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=BRIEF_SPINNING
            | os.environ
            | import_path()
            | ({} if share.gpu is None else {"CUDA_VISIBLE_DEVICES": share.gpu}),
        )
        for share in shares
    ]
    try:
        if any(_line(process) != "ready" for process in processes):  # all are loaded before any begins
            return None
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [_line(process) for process in processes]
        return [float(answer) for answer in answers] if all(answers) else None
    except BrokenPipeError:
        return None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def measure_packings(config: RunConfig, cores: Sequence[int], timing: Timing = time_side_by_side) -> list[Packing]:
    """Time one worker on all cores, one worker per core, and powers of two in between; the fastest comes first.

    Raises UserError when a process that measures ends without an answer.
    """
    counts = sorted({1, len(cores), *(2**n for n in range(1, len(cores).bit_length()) if 2**n < len(cores))})
    measured = []
    for workers in counts:
        shares = [Share(tuple(cores[number::workers])) for number in range(workers)]
        seconds = timing(config, shares)
        if seconds is None:
            raise UserError("--workers auto: a measuring process ended early; name a number of workers instead")
        measured.append(Packing(workers, len(shares[0].cores), sum(1 / each for each in seconds)))
    return sorted(measured, key=lambda packing: -packing.steps_per_second)


def measure_gpu_packings(
    config: RunConfig, cores: Sequence[int], gpus: Sequence[str], timing: Timing = time_side_by_side
) -> list[Packing]:
    """Time 1, 2, 4, ... workers on the first GPU, with its share of the cores; the fastest comes first.

    The others are taken to be like it. The search ends where more workers make hardly more steps, or where one of them
    ends: they don't fit the GPU's memory together. Raises UserError when a single one ends.
    """
    own = tuple(cores[:: len(gpus)]) if len(gpus) < len(cores) else tuple(cores[:1])
    measured: list[Packing] = []
    workers = 1
    while workers <= MOST_PER_GPU:
        shares = [Share(own[number::workers] or (own[number % len(own)],), gpus[0]) for number in range(workers)]
        seconds = timing(config, shares)
        if seconds is None:
            break
        rate = len(gpus) * sum(1 / each for each in seconds)
        best = max((packing.steps_per_second for packing in measured), default=0.0)
        measured.append(Packing(workers * len(gpus), len(shares[0].cores), rate))
        if rate < GAIN * best:
            break
        workers *= 2
    if not measured:
        raise UserError("--workers auto: a measuring process ended early; name a number of workers instead")
    return sorted(measured, key=lambda packing: -packing.steps_per_second)


def best_workers(
    config: RunConfig, cores: Sequence[int], gpus: Sequence[str] = (), timing: Timing = time_side_by_side
) -> Packing:
    """The packing that makes most steps per second: of the GPUs where there are any, else of the cores."""
    if gpus:
        return measure_gpu_packings(config, cores, gpus, timing)[0]
    return measure_packings(config, cores, timing)[0]


def main(arguments: list[str]) -> None:
    """One measuring process: load, say "ready", wait for a line, print the median seconds of a step."""
    import torch

    from core.config.loading import build
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
