"""Model states on one device: weights, gradients and the optimizer's, as DeepSpeed 0.19.8 spreads them.

ZeRO (arXiv 1910.02054): of P parameters in n-way data parallelism, stage 1 spreads the optimizer's 12 bytes each (an fp32
master and Adam's two moments), stage 2 the gradients too, stage 3 the weights too. What is spread is spread among those
that hold the same parameter: all n devices, or for an expert the n / E that hold that expert under expert parallelism E.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from core.capacity.layouts import Layout
from core.config.model import ModelConfig
from core.model.shapes import EXPERTS, weights

ADAM = 12  # bytes a parameter: fp32 master, first and second moment
ALIGNED = 2  # elements: what a device's part of a flat group is a multiple of
GROUP_LIMIT = 178_956_971  # elements of a group of experts (deepspeed.moe.utils), unless one tensor has more
SUB_GROUP = 1_000_000_000  # elements that ZeRO-3 updates at a time
PERSISTENT = 100_000  # elements up to which ZeRO-3 keeps a parameter whole
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered at a time, at most


class Sizes(NamedTuple):
    """Elements of each parameter tensor of the whole model, in its order: matrices and vectors that every device has, and
    the stacked experts."""

    matrices: tuple[int, ...]
    vectors: tuple[int, ...]
    experts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(map(sum, self))


class Group(NamedTuple):
    """Parameters that are flattened together, and how many devices share them out."""

    sizes: tuple[int, ...]
    sharers: int
    are_experts: bool


@dataclass(frozen=True)
class States:
    """Bytes on the fullest device, and in host memory for it.

    gradients: at the end of a step's last backward pass; accumulated: as it begins. gathered: parameters that ZeRO-3 has
    whole while it computes. step: what the optimizer's step allocates for a moment. setup: what the weights take before they
    are spread.
    """

    weights: int
    gradients: int
    accumulated: int
    optimizer: int
    gathered: int
    step: int
    setup: int
    host: int
    local_elements: int  # parameters that the device computes with


@lru_cache(maxsize=256)
def sizes(model: ModelConfig) -> Sizes:
    """The elements of a model's parameter tensors."""
    parameters = [weight for weight in weights(model) if not weight.buffer]
    shared = [weight for weight in parameters if EXPERTS not in weight.name]
    return Sizes(
        tuple(weight.elements for weight in shared if len(weight.shape) > 1),
        tuple(weight.elements for weight in shared if len(weight.shape) <= 1),
        tuple(weight.elements for weight in parameters if EXPERTS in weight.name),
    )


def groups(model: ModelConfig, devices: int, expert_parallel: int) -> list[Group]:
    """The optimizer's groups on one device: matrices, vectors, and experts in parts of up to GROUP_LIMIT elements."""
    counted = sizes(model)
    made = [Group(part, devices, False) for part in counted[:2] if part]
    part: list[int] = []
    for size in (whole // expert_parallel for whole in counted.experts):
        if part and sum(part) + size > GROUP_LIMIT:
            made.append(Group(tuple(part), devices // expert_parallel, True))
            part = []
        part.append(size)
    return [*made, Group(tuple(part), devices // expert_parallel, True)] if part else made


@lru_cache(maxsize=4096)
def states(
    model: ModelConfig,
    stage: int,
    expert_parallel: int,
    offload: str,
    devices: int,
    itemsize: int,
    accumulates: bool = False,
) -> States:
    """Model states of the fullest of the devices. itemsize: bytes of a weight, 2 in bf16, 4 in fp32."""
    made = groups(model, devices, expert_parallel)
    local = sum(sum(group.sizes) for group in made)
    found = _whole(made, stage, itemsize, accumulates) if stage < 3 else _spread(made, itemsize)
    if offload == "none":
        return found
    # In host memory: fp32 master, moments and gradient, and a copy of the part's weights on its way back.
    elements = found.optimizer // ADAM
    host = elements * (ADAM + 4 + itemsize * (1 + accumulates))
    largest = max(max(group.sizes) for group in made)
    weights, setup = found.weights, found.setup
    if offload == "parameters":
        host, weights = host + found.weights, 0
    return States(
        weights=weights,
        gradients=local * itemsize if stage == 1 else largest * itemsize,
        accumulated=local * itemsize if stage == 1 and accumulates else 0,
        optimizer=0,
        gathered=found.gathered,
        step=0,
        setup=setup,
        host=host,
        local_elements=local,
    )


def states_of(model: ModelConfig, layout: Layout, devices: int, itemsize: int) -> States:
    """The same of a layout."""
    return states(model, layout.stage, layout.expert_parallel, layout.offload, devices, itemsize, layout.accumulate > 1)


def _whole(made: list[Group], stage: int, itemsize: int, accumulates: bool) -> States:
    """Stages 0 to 2: every device has its weights whole."""
    local = sum(sum(group.sizes) for group in made)
    if stage == 0:  # without a master copy: Adam's moments beside the weights themselves
        whole = local * itemsize
        return States(whole, whole, whole * accumulates, 8 * local, 0, 0, whole, 0, local)
    parts = [_part(group) for group in made]
    padded = [part * group.sharers for part, group in zip(parts, made, strict=True)]
    kept = _kept(made, parts) * itemsize
    before = local * itemsize if stage == 1 else kept
    return States(
        weights=sum(padded) * itemsize,
        gradients=before if stage == 1 else kept * (1 + accumulates),  # what comes is added to what was kept at the end
        accumulated=before * accumulates,
        optimizer=ADAM * sum(parts),
        gathered=0,
        step=(kept if stage == 1 else 0) + max(parts) * (4 + itemsize),
        setup=(local + max(padded)) * itemsize,
        host=0,
        local_elements=local,
    )


def _spread(made: list[Group], itemsize: int) -> States:
    """Stage 3: of each parameter every sharer has a part; small ones it has whole beside it."""
    local = sum(sum(group.sizes) for group in made)
    parts = [sum(-(-size // group.sharers) for size in group.sizes) for group in made]
    shared = [(size, group.sharers) for group in made for size in group.sizes if group.sharers > 1]
    persistent = sum(size for size, _ in shared if size <= PERSISTENT)
    passing = [size for size, _ in shared if size > PERSISTENT]
    return States(
        weights=(sum(parts) + persistent) * itemsize,
        gradients=sum(parts) * itemsize,
        accumulated=sum(parts) * itemsize,  # one buffer, always there
        optimizer=ADAM * sum(parts),
        gathered=min(sum(passing), LIVE + max(passing, default=0)) * itemsize,
        step=min(max(parts), SUB_GROUP) * (4 + itemsize),
        setup=local * itemsize,
        host=0,
        local_elements=local,
    )


def _part(group: Group) -> int:
    aligned = ALIGNED * group.sharers
    return -(-sum(group.sizes) // aligned) * ALIGNED


def _kept(made: list[Group], parts: list[int]) -> int:
    """Elements of the gradients that the fullest device keeps: whole tensors, wherever its part touches one."""
    devices = max(group.sharers for group in made)
    kept = np.zeros(devices, dtype=np.int64)
    for group, part in zip(made, parts, strict=True):
        ends = np.cumsum(group.sizes)
        begins = np.arange(group.sharers, dtype=np.int64) * part
        first = np.searchsorted(ends, begins, side="right")
        last = np.searchsorted(ends - np.array(group.sizes), begins + part, side="left")
        sums = np.concatenate([[0], ends])
        touched = np.maximum(sums[last] - sums[np.minimum(first, len(group.sizes))], 0)
        kept += np.repeat(touched, devices // group.sharers)  # neighbours hold different experts' same place
    return int(kept.max())
