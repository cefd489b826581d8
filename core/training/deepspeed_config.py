"""DeepSpeed configuration of a run, checked before the libraries that train are imported."""

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config.run import RunConfig
from core.errors import UserError
from core.runtime.json_files import once
from core.runtime.paths import expanded

# Follow from the config's own fields, or change what is trained, or in which precision, beside what the record says.
RESERVED = (
    "optimizer", "scheduler", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "activation_checkpointing",
    "data_types", "communication_data_type", "seq_parallel_communication_data_type", "fp32_allreduce", "elasticity",
    "data_efficiency", "curriculum_learning", "progressive_layer_drop", "compression_training", "quantize_training",
    "sparse_attention", "autotuning", "tensor_parallel", "sequence_parallel_size", "pipeline", "expert_parallel", "moe",
    "compile", "gradient_predivide_factor", "prescale_gradients", "gradient_allreduce_op", "managed_gradient_accumulation",
    "weight_quantization", "bfloat16", "zero_optimization.zenflow",
)  # fmt: skip
QUANTIZED = ("weights", "gradients", "nontrainable_weights")  # as they travel
PRECISIONS = ("fp16", "bf16", "amp", "torch_autocast")


def uses_cuda(config: RunConfig) -> bool:
    """True if the run trains on a GPU: where there is one and the config doesn't say cpu."""
    return config.trainer.accelerator != "cpu" and has_cuda()


def has_cuda() -> bool:
    """Say whether torch sees a CUDA device. Torch itself is imported only where there may be one."""
    if "torch" not in sys.modules and not _may_have_cuda():
        return False
    import torch  # seconds, which a machine without a GPU needn't spend on this

    return torch.cuda.is_available()


def free_on_gpu() -> int:
    """Bytes that are free on the GPU that a run would train on."""
    import torch  # as above: there is a GPU

    return int(torch.cuda.mem_get_info()[0])


def _may_have_cuda() -> bool:
    """Look for a driver that torch could use. Loading NVIDIA's library starts nothing on a device."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():  # AMD's driver
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def check_devices(config: RunConfig, devices: int, *, here: bool = True) -> None:
    """Refuse a number of devices that the config can't be spread over, and a DeepSpeed JSON that can't be merged.

    here: they are this machine's, which must have what the config needs. Raises UserError.
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
    if here and config.deepspeed.offload != "none" and not has_cuda():
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
    return _merged(settings, _users(config, devices)) if spread.json else settings


def _users(config: RunConfig, devices: int) -> dict[str, Any]:
    """Additions of the user's file; what the config says too is left out, and refused where it differs."""
    path = config.deepspeed.json
    assert path is not None
    try:
        content = json.loads(Path(expanded(path)).read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"deepspeed.json={path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"deepspeed.json={path} must hold a JSON object, such as {{}}")
    zero = content.get("zero_optimization")
    given = {*content, *(f"zero_optimization.{name}" for name in (zero if isinstance(zero, dict) else ()))}
    for name in RESERVED:
        if name in given:
            raise UserError(
                f"deepspeed.json={path} sets {name}, which follows from the config or would train otherwise than the record "
                "says: leave it out"
            )
    for key, (field, value) in _said(config, devices).items():
        _take_out(content, key, field, value, path)
    precision = config.trainer.precision
    if more := content.get(precision):
        raise UserError(
            f"deepspeed.json={path} sets {precision}.{next(iter(more))}, and of precision trainer.precision says all: "
            "leave it out"
        )
    return {key: value for key, value in content.items() if key not in PRECISIONS}


def _said(config: RunConfig, devices: int) -> dict[str, tuple[str, Any]]:
    """The config's fields in DeepSpeed's terms: the field and the value, by dotted key."""
    trainer, offload = config.trainer, config.deepspeed.offload
    micro = trainer.batch_size // (devices * trainer.accumulate)
    precision = {f"{name}.enabled": ("trainer.precision", name == trainer.precision) for name in PRECISIONS}
    of_optimizer = "none" if offload == "none" else "cpu"
    of_parameters = "cpu" if offload == "parameters" else "none"
    return precision | {
        "train_batch_size": ("trainer.batch_size", trainer.batch_size),
        "train_micro_batch_size_per_gpu": ("trainer.batch_size, trainer.accumulate and --devices", micro),
        "gradient_accumulation_steps": ("trainer.accumulate", trainer.accumulate),
        "gradient_clipping": ("optimizer.gradient_clip", config.optimizer.gradient_clip),
        "zero_optimization.stage": ("deepspeed.stage", config.deepspeed.stage),
        "zero_optimization.offload_optimizer.device": ("deepspeed.offload", of_optimizer),
        "zero_optimization.offload_param.device": ("deepspeed.offload", of_parameters),
        "zero_optimization.cpu_offload": ("deepspeed.offload", of_optimizer == "cpu"),
        "zero_optimization.cpu_offload_param": ("deepspeed.offload", of_parameters == "cpu"),
        **{f"zero_optimization.zero_quantized_{what}": ("trainer.precision", False) for what in QUANTIZED},
    }


def _take_out(content: dict[str, Any], key: str, field: str, value: Any, path: str) -> None:
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, start=1):
        inner = content.get(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"deepspeed.json={path}: {'.'.join(sections[:depth])} must be an object, not {inner!r}")
        content = inner
    if last not in content:
        return
    found = content.pop(last)
    if found != value or isinstance(found, bool) != isinstance(value, bool):
        raise UserError(
            f"deepspeed.json={path} sets {key} to {json.dumps(found)}, and by {field} it is {json.dumps(value)}: set "
            f"{field}, and leave this out"
        )


def _merged(settings: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
