"""DeepSpeed under Lightning, on CPU (gloo) and on CUDA (NCCL)."""

import atexit
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.config.run import RunConfig
from core.runtime.lightning_import import lightning
from core.runtime.ranks import Ranks
from core.training.communication import Traffic
from core.training.deepspeed_checkpoints import only_known_types
from core.training.deepspeed_config import engine_config, uses_cuda
from core.training.module import AdamW
from core.training.seals import Digest, hashing


def _prepare_optimizers() -> None:
    """Have ZeRO take this project's AdamW for the torch.optim.AdamW that it is, and import Muon without compiling it.

    ZeRO imports Muon whatever the optimizer is, and its decorators alone load torch._inductor: three CPU seconds a process.
    """
    from deepspeed.runtime import compiler
    from deepspeed.runtime.zero import utils

    if AdamW not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(AdamW)
    compiled, compiler.compile = compiler.compile, lambda *options, **named: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compiled


class PortableDeepSpeed(lightning.pytorch.strategies.DeepSpeedStrategy):
    """Lightning's strategy, which refuses anything but CUDA, with what it takes to run on a CPU as well."""

    strategy_name = "deepspeed_portable"
    traffic: Traffic
    hashed: Mapping[str, Digest] = {}  # of the files that this rank last saved
    _met = False

    def setup_environment(self) -> None:
        """Meet the other ranks: once, by whoever needs them first."""
        if self._met:
            return
        self._met = True
        _prepare_optimizers()
        if not self._on_cpu:
            super().setup_environment()
            return
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = {}  # else an extension for shared memory is compiled first: 77 s
        super(lightning.pytorch.strategies.DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
        else:  # devices of a CPU have no index to validate
            lightning.fabric.utilities.seed.reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        atexit.register(leave_group)
        self.traffic = Traffic.of_engine()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        assert self.deepspeed_engine is not None
        with hashing(self.deepspeed_engine.checkpoint_engine, Path(filepath)) as self.hashed:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        with only_known_types():  # DeepSpeed asks for anything
            return super().load_checkpoint(checkpoint_path, weights_only)

    def backward(self, closure_loss: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        # Lightning has divided the loss by the micro-batches of a step; the engine would do it again.
        return super().backward(closure_loss, *arguments, **settings, scale_wrt_gas=False)

    def teardown(self) -> None:
        # Lightning's moves the weights to the host, from where NCCL can't gather them from all ranks any more.
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed wants a number for its device, and a CPU's is None.
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """No zero.Init: experts must not be spread over all ranks before the engine has seen whose they are."""
        self._init_config_if_needed()
        yield

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, lightning.pytorch.accelerators.CPUAccelerator)


def leave_group() -> None:
    """End the process group, without which ZeRO-3 aborts now and then as the process exits."""
    if dist.is_initialized():
        dist.destroy_process_group()


def strategy_of(config: RunConfig, ranks: Ranks) -> PortableDeepSpeed:
    """The Lightning strategy of a run under DeepSpeed."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not uses_cuda(config) else "cuda")
    return PortableDeepSpeed(config=engine_config(config, ranks.size))
