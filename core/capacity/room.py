"""Estimate of the memory of a few training steps, compared with this machine's before anything is allocated."""

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.capacity.clusters import DEVICES, GB, Cluster
from core.capacity.layouts import Layout
from core.capacity.memory import memory
from core.config.run import RunConfig
from core.errors import UserError
from core.model.flops import count
from core.training.deepspeed_config import free_on_gpu, uses_cuda

SHARE = 0.5  # of free memory, for a measurement: others work on a login node too
UNFUSED = 2  # times the activations, on a CPU (measured: 2.2)
UNLIMITED = 2**60  # bytes; version 1 of cgroups says "no limit" by a number near 2^63
# Of each version of cgroups: its folder, its files of the limit and of what is used, and the cache that can be dropped.
CGROUPS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_room(config: RunConfig, processes: int, instead: str) -> None:
    """Refuse to measure a config's steps in so many processes at once where that takes too much of the free memory.

    instead: what the user can do. Raises UserError.
    """
    needed, free = step_memory(config), free_memory()
    if uses_cuda(config):
        _check(needed, free_on_gpu(), "on the GPU", instead)
        needed = 4 * count(config.model).total  # as the weights are drawn
    if free is not None:
        _check(needed * processes, free, "here", instead)


def _check(needed: int, free: int, where: str, instead: str) -> None:
    if needed > SHARE * free:
        raise UserError(
            f"timing a few steps takes about {needed / GB:.3g} GB of memory, more than {SHARE:.0%} of the {free / GB:.3g} GB "
            f"that are free {where}: {instead}"
        )


def step_memory(config: RunConfig) -> int:
    """Bytes of a training step on one device without an engine, weights and optimizer's states in fp32 included."""
    sequences = config.trainer.batch_size * config.objective.sequences
    sequences *= 2 if config.model.block_length else 1  # each beside its masked self
    layout = Layout(0, 1, sequences, 1, config.trainer.activation_checkpointing)
    plain = replace(config, trainer=replace(config.trainer, precision="fp32"))
    counted = memory(plain, layout, Cluster(1, DEVICES["cpu"]))
    # What layers keep is counted as on a GPU, whose kernels fuse more.
    return counted.total if uses_cuda(config) else counted.states + UNFUSED * (counted.total - counted.states)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, its control groups and its own limit; None: not known."""
    found = [*_of_machine(root), *_of_groups(root)]
    if root == Path("/") and (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        found.append(limit)
    return min(found, default=None)


def _of_machine(root: Path) -> Iterator[int]:
    for name, value in _pairs(root / "proc/meminfo"):
        if name == "MemAvailable:":
            yield 1024 * value
            return
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """Bytes left of the limit of this process's control group and of each above it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, inside = line.split(":", 2)
        kind = next((kind for kind in kinds.split(",") if kind in CGROUPS), None)
        if kind is None:
            continue
        folder, most, used, cached = CGROUPS[kind]
        top = root / "sys/fs/cgroup" / folder
        own = top / inside.lstrip("/")
        for group in (own, *own.parents):  # in a container the own one may not be there, and its top is the limit
            limit, taken = (_number(group / name) for name in (most, used))
            if limit is not None and taken is not None and limit < UNLIMITED:
                yield max(0, limit - taken + dict(_pairs(group / "memory.stat")).get(cached, 0))
            if group == top:
                break


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    for line in _lines(path):
        name, *rest = line.split()
        if rest and rest[0].isdecimal():
            yield name, int(rest[0])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
