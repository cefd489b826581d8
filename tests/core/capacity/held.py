"""Memory of DeepSpeed's engine in a real run: bytes of weights, gradients and optimizer states on one rank."""

from typing import Any

import lightning
import torch
from torch import Tensor

from core.capacity.layouts import Layout
from core.capacity.states import states_of
from core.config.run import RunConfig


def stored(tensors: list[Tensor]) -> int:
    """Bytes of their storages, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


class Held(lightning.Callback):
    """The most gradients that there are at a time, and after two steps the weights and the optimizer's states."""

    def __init__(self) -> None:
        self.bytes = {"gradients": 0}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.engine, self.stage = trainer.strategy.model, pl_module.config.deepspeed.stage
        self.parameters = list(pl_module.parameters())
        if self.stage < 3:  # the last gradient to come
            pl_module.denoiser.embed.weight.register_post_accumulate_grad_hook(lambda _: self.see_gradients())

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.see_gradients()

    def see_gradients(self) -> None:
        """Views of a bucket, which is no gradient's own, are left out."""
        optimizer = self.engine.optimizer
        held = [p.grad for p in self.parameters if p.grad is not None]
        if self.stage == 3:
            held.append(optimizer.grad_partitions_flat_buffer)
        elif self.stage:
            buckets = {b.untyped_storage().data_ptr() for i in optimizer.ipg_buckets.values() for b in i.buffer}
            held += [t for group in optimizer.averaged_gradients.values() for t in group or []]
            held += [t for group in optimizer.all_grad_tensors.values() for t in group or []]
            held += [] if optimizer.grads_in_partition is None else [optimizer.grads_in_partition]
            held = [t for t in held if t.untyped_storage().data_ptr() not in buckets]
        self.bytes["gradients"] = max(self.bytes["gradients"], stored(held))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != 1 or "weights" in self.bytes:
            return
        optimizer = self.engine.optimizer
        inner = optimizer.optimizer if self.stage else optimizer
        states = [v for state in inner.state.values() for v in state.values() if torch.is_tensor(v) and v.numel() > 1]
        if self.stage:
            three = self.stage == 3
            states += optimizer.fp32_partitioned_groups_flat if three else optimizer.single_partition_of_fp32_groups
        weights = [p.data for p in self.parameters] + [p.ds_tensor for p in self.parameters if hasattr(p, "ds_tensor")]
        self.bytes |= {"weights": stored(weights), "optimizer": stored(states)}


def counted(config: RunConfig, devices: int) -> dict[str, int]:
    """The same on paper, of the fullest rank."""
    itemsize = 2 if config.trainer.precision == "bf16" else 4
    found = states_of(config.model, Layout.of(config, devices), devices, itemsize)
    return {name: getattr(found, name) for name in ("weights", "gradients", "optimizer")}
