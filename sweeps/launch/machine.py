"""Cores and GPUs of this machine, and a worker's share of them."""

import functools
import os
import subprocess
import sys

from core.errors import UserError

# Device files without which there is no GPU to count: NVIDIA's, its Tegra's, WSL's and AMD's.
DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def share_of_cores(number: int, workers: int) -> list[int]:
    """The CPU cores of a worker: an equal share of those that this process may use, at least one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return cores[number % len(cores) :: workers] if workers <= len(cores) else [cores[number % len(cores)]]


def default_workers(devices: int = 1) -> int:
    """One worker per GPU, or per CPU core where there is none; per `devices` of them where a run needs several."""
    return max(1, (len(gpus()) or len(share_of_cores(0, 1))) // devices)


def share_of_gpus(number: int, devices: int = 1) -> dict[str, str]:
    here = gpus()
    if here and devices > len(here):
        raise UserError(f"resources: a run needs {devices} devices, and this machine has {len(here)} GPUs")
    chosen = [here[(number * devices + index) % len(here)] for index in range(devices)] if here else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)} if here else {}


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(_count_gpus())] if any(map(os.path.exists, DRIVERS)) else []


@functools.cache
def _count_gpus() -> int:
    """As torch counts them, in a process of its own: its import takes seconds, and this process trains nothing."""
    count = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(count, stdout=subprocess.PIPE, text=True, check=True).stdout)
