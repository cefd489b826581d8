"""DeepSpeed under Lightning, on CPU (gloo) and on CUDA (NCCL)."""

import atexit
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from core.config import RunConfig
from core.errors import UserError
from core.model.transformer import whole_name
from core.ranks import Ranks
from core.training.traffic import Traffic

# Set by the platform from the config's own fields, or without meaning for it.
RESERVED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer",
    "scheduler",
)


class PortableDeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy, which refuses anything but CUDA, with what it takes to run on a CPU as well."""

    strategy_name = "deepspeed_portable"
    traffic: Traffic

    def setup_environment(self) -> None:
        if not self._on_cpu:
            return super().setup_environment()
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = {}  # else an extension for shared memory is compiled first: 77 s
        super(DeepSpeedStrategy, self).setup_environment()
        return None

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
        else:  # devices of a CPU have no index to validate
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        atexit.register(leave_group)
        self.traffic = Traffic.of_engine()

    def backward(self, closure_loss: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        # Lightning has divided the loss by the micro-batches of a step; the engine would do it again.
        return super().backward(closure_loss, *arguments, **settings, scale_wrt_gas=False)

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
        return isinstance(self.accelerator, CPUAccelerator)


def leave_group() -> None:
    """End the process group, without which ZeRO-3 aborts now and then as the process exits."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_devices(config: RunConfig, devices: int) -> None:
    """Refuse a number of devices that the config can't be spread over, and a DeepSpeed JSON that can't be merged.

    Raises UserError.
    """
    parallel, trainer = config.deepspeed.expert_parallel, config.trainer
    if devices < 1:
        raise UserError(f"devices must be at least 1, not {devices}")
    if trainer.strategy == "single":
        if devices > 1:
            raise UserError(
                f"trainer.strategy=single trains on one device, not {devices}: set trainer.strategy=deepspeed"
            )
        return
    if devices % parallel:
        raise UserError(
            f"deepspeed.expert_parallel={parallel} must divide the number of devices, {devices}: use --devices {parallel}"
        )
    if trainer.batch_size % (devices * trainer.accumulate):
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} can't be split over {devices} devices in trainer.accumulate="
            f"{trainer.accumulate} micro-batches: use a multiple of {devices * trainer.accumulate}"
        )
    if config.deepspeed.offload != "none" and not torch.cuda.is_available():
        raise UserError(f"deepspeed.offload={config.deepspeed.offload} moves state from a GPU, and there is none here")
    engine_config(config, devices)


def engine_config(config: RunConfig, devices: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run: from the config's fields, with the user's JSON file merged over it.

    Raises UserError for a file that isn't a JSON object, or that sets what the config's own fields say.
    """
    spread, trainer = config.deepspeed, config.trainer
    zero: dict[str, Any] = {"stage": spread.stage}
    if spread.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if spread.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": trainer.batch_size // (devices * trainer.accumulate),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,
    }
    if spread.stage == 0:
        settings["gradient_clipping"] = 0.0  # the module clips: DeepSpeed averages the norms of ranks
    return _merged(settings, _users(spread.json)) if spread.json else settings


def _users(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed.json={path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"deepspeed.json={path} must hold a JSON object, such as {{}}")
    for name in RESERVED:
        if name in content:
            raise UserError(
                f"deepspeed.json={path} sets {name}, which follows from trainer.* and optimizer.*: leave it out"
            )
    if "stage" in content.get("zero_optimization", {}):
        raise UserError(f"deepspeed.json={path} sets zero_optimization.stage: set deepspeed.stage instead")
    return content


def _merged(settings: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def strategy_of(config: RunConfig, ranks: Ranks) -> PortableDeepSpeed:
    """The Lightning strategy of a run under DeepSpeed."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not uses_cuda(config) else "cuda")
    return PortableDeepSpeed(config=engine_config(config, ranks.size))


def uses_cuda(config: RunConfig) -> bool:
    """Whether the run trains on a GPU: where there is one and the config doesn't say cpu."""
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; itself where there is one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def from_all_ranks(value: Any) -> list[Any]:
    """What each rank gave, in order of rank, on every rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
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
    """Whether the parameter is this rank's part of the experts."""
    return hasattr(parameter, "held")


def whole_weights(denoiser: nn.Module, stage: int) -> dict[str, Tensor]:
    """The model's weights in fp32 from any layout, parameter by parameter; on rank 0, and empty elsewhere.

    Every rank must call it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights: dict[str, Tensor] = {}
    rank = dist.get_rank()
    for name, parameter in denoiser.named_parameters():
        value = parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)
        if is_spread(parameter):
            group = _expert_group(parameter)
            parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, value.contiguous(), group=group)
            value = torch.cat(parts)
        if rank == 0:
            weights[whole_name(name, parameter)] = value.float().cpu().clone()
    if rank == 0:
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in denoiser.named_buffers()}
    return weights


def _expert_group(parameter: nn.Parameter) -> Any:
    from deepspeed.utils import groups

    return groups._get_expert_parallel_group(parameter.group_name)  # type: ignore[attr-defined]
