"""Packing of runs on a machine's cores and GPUs, by measuring processes side by side."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.config.loading import build
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


def measure_packings(
    config: RunConfig, cores: Sequence[int], gpus: Sequence[str] = (), timing: Timing = time_side_by_side
) -> list[Packing]:
    """Time 1, 2, 4, ... workers side by side; the packing that makes most steps per second comes first.

    Without GPUs, up to one worker per core. With GPUs, on the first one with its share of the cores (the others are taken to
    be like it), until more workers make hardly more steps, or one of them ends: they don't fit its memory together.
    Raises UserError when another process that measures ends without an answer.
    """
    own = tuple(cores[:: len(gpus)] if 0 < len(gpus) < len(cores) else cores[:1] if gpus else cores)
    most = MOST_PER_GPU if gpus else len(own)
    counts = sorted({*(2**n for n in range(most.bit_length())), most})
    measured: list[Packing] = []
    for workers in counts:
        shares = [
            Share(own[number::workers] or (own[number % len(own)],), gpus[0] if gpus else None)
            for number in range(workers)
        ]
        seconds = timing(config, shares)
        if seconds is None and gpus and measured:
            break
        if seconds is None:
            raise UserError("--workers auto: a measuring process ended early; name a number of workers instead")
        machines = len(gpus) or 1
        rate = machines * sum(1 / each for each in seconds)
        best = max((packing.steps_per_second for packing in measured), default=0.0)
        measured.append(Packing(workers * machines, len(shares[0].cores), rate))
        if gpus and rate < GAIN * best:
            break
    return sorted(measured, key=lambda packing: -packing.steps_per_second)


def main(arguments: list[str]) -> None:
    """One measuring process: load, say "ready", wait for a line, print the median seconds of a step."""
    import torch  # of the measuring process alone

    from core.training.run import seconds_per_step  # torch

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
