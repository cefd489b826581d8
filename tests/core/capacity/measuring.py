"""Real steps of small models, as an accelerator would take them: what they keep for the backward pass, and their peak."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import core.model.grouped_experts as mixing
import core.model.norm as norm
from core.config.run import RunConfig
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.training.module import MaskedDiffusion


@contextlib.contextmanager
def as_accelerator() -> Iterator[None]:
    """Layers that compute as on a GPU: experts in one part, the norm fused (it keeps its fp32 input and each row's scale)."""

    def fused(x: Tensor, shape: tuple, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
        return norm._RMSNorm.apply(x, torch.ones(shape) if weight is None else weight, eps, x.dtype)

    with (
        mock.patch.object(norm, "by_hand", lambda x: False),
        mock.patch.object(mixing, "in_parts", lambda device: False),
        mock.patch.object(torch.nn.functional, "rms_norm", fused),
    ):
        yield


def module_and_batch(config: RunConfig) -> tuple[MaskedDiffusion, Batch]:
    """A model in the precision that DeepSpeed trains it in, and a batch of which every token is masked."""
    module = MaskedDiffusion(config)
    if config.trainer.precision == "bf16":
        module.bfloat16()
    size, length = config.trainer.batch_size, config.data.sequence_length
    tokens_BL = torch.randint(256, (size, length), generator=torch.Generator().manual_seed(0))
    ones_B = torch.ones(size)
    masking = Masking(torch.ones(size, length, dtype=torch.bool), ones_B, ones_B, ones_B * length)
    return module, Batch.of(tokens_BL, masking)


def saved(config: RunConfig) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass, each storage once, parameters excluded."""
    module, batch = module_and_batch(config)
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with as_accelerator(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.training_step(batch, 0)
    return sum(size for _, size in kept.values())


def peak(config: RunConfig) -> int:
    """Bytes that one training step, forward and backward, has allocated at most at a time beyond parameters and gradients.

    Counted by torch's allocator as the profiler hears it. Gradients are there before, as zeros, so that the second pass
    allocates none that stays.
    """
    module, batch = module_and_batch(config)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with as_accelerator(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as heard:
        module.training_step(batch, 0)["loss"].backward()
    return most_allocated(heard)


def most_allocated(heard: profile) -> int:
    """The most bytes that were allocated at a time while the profiler listened, beyond those at its start."""
    level = most = 0
    events = [event for event in heard.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most
