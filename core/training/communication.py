"""What a run's processes tell each other, and how many bytes of it the engine sends."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.model.balance import over_ranks

ALL_TO_ALL = "all_to_all"
REDUCTION = "reduction"


class Traffic:
    """Bytes that the engine handed to collectives on this rank, counted as it calls them.

    all_to_all: what left this rank for others, forward and backward. reduction: the whole tensor of every all-reduce, reduce,
    reduce-scatter and all-gather (a ring among n sends 2 (n - 1) / n of it for an all-reduce, half of that for the others).
    """

    def __init__(self) -> None:
        self.bytes = {ALL_TO_ALL: 0, REDUCTION: 0}

    @classmethod
    def of_engine(cls) -> "Traffic":
        """Count what passes through deepspeed.comm in this process, from its initialisation on."""
        from deepspeed.comm import comm

        backend = comm.cdb
        counted: Traffic | None = getattr(backend, "counted_traffic", None)
        if counted is None:
            counted = backend.counted_traffic = cls()
            for name, (kind, size) in _SIZES.items():
                setattr(backend, name, counted._counting(getattr(backend, name), kind, size))
        return counted

    def take(self) -> dict[str, int]:
        """The bytes of each kind since it was last asked."""
        taken, self.bytes = self.bytes, {ALL_TO_ALL: 0, REDUCTION: 0}
        return taken

    def _counting(self, collective: Callable[..., Any], kind: str, size: Callable[..., int]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def counted(*arguments: Any, **named: Any) -> Any:
            self.bytes[kind] += size(*arguments, **named)
            return collective(*arguments, **named)

        return counted


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _sent(
    output: Tensor,
    input: Tensor,
    output_split_sizes: list[int] | None = None,
    input_split_sizes: list[int] | None = None,
    group: Any = None,
    **unused: Any,
) -> int:
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    kept = input_split_sizes[rank] / max(1, sum(input_split_sizes)) if input_split_sizes else 1 / size
    return round(_bytes(input) * (1 - kept))


# By the names and parameters of deepspeed.comm.torch.TorchBackend, which calls none of these from another.
_SIZES: dict[str, tuple[str, Callable[..., int]]] = {
    "all_to_all_single": (ALL_TO_ALL, _sent),
    "all_reduce": (REDUCTION, lambda tensor, *_, **__: _bytes(tensor)),
    "reduce": (REDUCTION, lambda tensor, *_, **__: _bytes(tensor)),
    "all_reduce_coalesced": (REDUCTION, lambda tensors, *_, **__: sum(map(_bytes, tensors))),
    "reduce_scatter_tensor": (REDUCTION, lambda output_tensor, input_tensor, *_, **__: _bytes(input_tensor)),
    "all_gather_into_tensor": (REDUCTION, lambda output_tensor, input_tensor, *_, **__: _bytes(output_tensor)),
    "all_gather_coalesced": (REDUCTION, lambda output_tensors, *_, **__: sum(map(_bytes, output_tensors))),
    "all_gather": (REDUCTION, lambda tensor_list, *_, **__: sum(map(_bytes, tensor_list))),
}


def _are_many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; itself where there is one."""
    return over_ranks(values) / dist.get_world_size() if _are_many() else values


def from_all_ranks(value: Any) -> list[Any]:
    """Gather a value from all ranks, in order of rank, on every rank."""
    if not _are_many():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def clip_exactly(module: nn.Module, limit: float) -> Tensor:
    """Clip the gradients' global norm, experts of all ranks included once each. Returns the norm before."""
    own = torch.zeros((), device=next(module.parameters()).device)
    shared, group = own.clone(), None
    gradients = []
    for parameter in module.parameters():
        if parameter.grad is None:
            continue
        gradients.append(parameter.grad)
        square = parameter.grad.float().square().sum()
        if is_spread(parameter):
            own, group = own + square, _expert_group(parameter)
        else:
            shared = shared + square
    if group is not None:
        dist.all_reduce(own, group=group)
    norm = (own + shared).sqrt()
    if limit:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
    return norm


def is_spread(parameter: nn.Parameter) -> bool:
    """True if the parameter is this rank's part of the experts."""
    return hasattr(parameter, "held")


def whole_tensor(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A parameter's value or gradient with those of the experts that other ranks hold; all of them must call it."""
    if not is_spread(parameter):
        return value
    group = _expert_group(parameter)
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value.contiguous(), group=group)
    return torch.cat(parts)


def _expert_group(parameter: nn.Parameter) -> Any:
    from deepspeed.utils import groups

    return groups._get_expert_parallel_group(parameter.group_name)  # type: ignore[attr-defined]
