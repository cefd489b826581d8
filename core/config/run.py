"""Configuration of one run: frozen dataclasses with checks, and its hash.

Building one refuses impossible values. core.config.loading builds it from files and `key=value` settings. The comment of a
field is its description in docs/configuration.md.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

import yaml

from core.config.data import DataConfig
from core.config.model import ROUTERS, ModelConfig
from core.config.objective import OBJECTIVES, ObjectiveConfig
from core.config.options import option_keys
from core.config.training import DeepSpeedConfig, OptimizerConfig, TrainerConfig
from core.errors import require
from core.plugins import Plugin
from core.registry import Registry


@dataclass(frozen=True)
class RunConfig:
    """Configuration of one run. Two runs of equal configurations on equal data are the same run."""

    seed: int = 0  # seed of initial weights, data order, timesteps and masks
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    # files and packages with components of your own, each as PATH#HASH of its source; PATH alone: as it is now
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        _check_precision(self)
        _check_strategy(self)
        _check_objective(self)
        _check_schedule(self)
        _check_packing(self)

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step, on average where lengths vary."""
        data = self.data
        short = (data.variable_length_min + data.sequence_length) / 2
        length = data.sequence_length + data.variable_length_share * (short - data.sequence_length)
        return self.trainer.batch_size * length * self.objective.sequences


def _check_precision(config: RunConfig) -> None:
    if config.trainer.precision == "fp32" or not config.model.num_experts:
        return
    for name, multiple in (("hidden_size", 8), ("expert_width", 8 * config.model.granularity)):
        width = getattr(config.model, name)
        needed = f"must be a multiple of {multiple} under trainer.precision=bf16: grouped matmul needs 16-byte rows"
        require(width % multiple == 0, f"model.{name}={width} {needed}")


def _check_strategy(config: RunConfig) -> None:
    trainer, model, spread = config.trainer, config.model, config.deepspeed
    if trainer.strategy == "single":
        require(
            spread == DeepSpeedConfig(),
            "deepspeed.* is set, but trainer.strategy=single trains without DeepSpeed: set trainer.strategy=deepspeed",
        )
        return
    parallel = spread.expert_parallel
    require(
        parallel == 1 or model.num_experts > 0,
        f"deepspeed.expert_parallel={parallel} needs experts, and model.num_experts=0 is dense: set it to 1",
    )
    require(
        model.experts % parallel == 0,
        f"deepspeed.expert_parallel={parallel} must divide the {model.experts} experts (model.num_experts)",
    )
    require(
        trainer.precision == "fp32" or spread.stage >= 1,
        "trainer.precision=bf16 with deepspeed.stage=0 keeps no fp32 copy of the experts and leaves them out of the "
        "gradient's norm: use deepspeed.stage=1 or more",
    )
    require(
        not (spread.stage == 3 and model.tied_embeddings),
        "deepspeed.stage=3 gathers a parameter for the layer that owns it, and model.tied_embeddings=true shares one "
        "between two: use deepspeed.stage=2",
    )
    require(
        not trainer.compile, "trainer.compile=true isn't supported with trainer.strategy=deepspeed: set it to false"
    )


def _check_objective(config: RunConfig) -> None:
    model, kind, traits = config.model, config.objective.kind, config.objective.traits
    if traits.causal:
        require(model.causal, f"objective.kind={kind} needs model.causal=true: else it sees what it predicts")
        require(
            not model.num_experts or model.router.traits.routes_tokens_singly,
            f"model.router.kind={model.router.kind} depends on how much of a sequence is masked or on tokens to come, and "
            f"objective.kind={kind} masks nothing: use topk",
        )
        require(model.eos_id is not None, f"objective.kind={kind} starts sequences with eos: set model.eos_id")
    else:
        require(
            not model.causal,
            f"objective.kind={kind} needs model.causal=false: a masked token is predicted from both sides",
        )
        require(model.mask_id is not None, f"objective.kind={kind} needs a mask token: set model.mask_id")
    blocks = model.block_length is not None
    require(
        blocks or config.objective.block_schedule == "constant",
        "objective.block_schedule=wsd falls back to blocks of model.block_length: set that",
    )
    require(
        not blocks or config.objective.weighting == "bound",
        f"objective.weighting={config.objective.weighting} weighs tokens by all that is visible around them, and with "
        "model.block_length later blocks aren't: use bound",
    )
    if traits.reference:
        require(
            config.trainer.initial_weights is not None,
            f"objective.kind={kind} compares with the model that it starts from: set trainer.initial_weights",
        )
        require(
            config.trainer.strategy == "single",
            f"objective.kind={kind} keeps a second network as its reference: use trainer.strategy=single",
        )
    require(
        not traits.responses or not config.data.variable_length_share,
        f"objective.kind={kind} has the lengths of its responses: set data.variable_length_share to 0",
    )
    require(
        config.data.sequence_length <= model.max_positions,
        f"data.sequence_length={config.data.sequence_length} exceeds model.max_positions={model.max_positions}",
    )


def decay_steps(config: RunConfig) -> int:
    """Number of last steps over which the learning rate falls, under optimizer.schedule=wsd."""
    return max(1, round(config.optimizer.decay_fraction * config.trainer.steps))


def learning_rate_factor(config: RunConfig, step: int) -> float:
    """Share of the peak learning rate at a step: up over the warm-up, then as optimizer.schedule says."""
    settings, steps = config.optimizer, config.trainer.steps
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    falling = decay_steps(config) if settings.schedule == "wsd" else max(1, steps - settings.warmup_steps)
    progress = min(1.0, max(0.0, (step - (steps - falling)) / falling))
    left = 1 - progress if settings.schedule == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    return settings.final_lr_fraction + (1 - settings.final_lr_fraction) * left


def _check_schedule(config: RunConfig) -> None:
    optimizer, steps = config.optimizer, config.trainer.steps
    require(
        optimizer.schedule != "wsd" or optimizer.warmup_steps + decay_steps(config) <= steps,
        f"optimizer.warmup_steps={optimizer.warmup_steps} and a decay over {decay_steps(config)} steps "
        f"(optimizer.decay_fraction) don't fit into trainer.steps={steps}: shorten the warm-up",
    )


def _check_packing(config: RunConfig) -> None:
    model, traits = config.model, config.objective.traits
    if not config.data.packing:
        return
    require(
        traits.responses and not traits.pairs,
        f"data.packing=true packs prompts and responses, and objective.kind={traits.name} learns whole sequences: set it to "
        "false",
    )
    require(
        not model.num_experts or not model.router.traits.experts_choose,
        f"data.packing=true with model.router.kind={model.router.kind} would let conversations compete for experts: use topk",
    )
    require(
        not (model.shifted or model.block_length),
        f"data.packing=true confines attention to conversations, and model.{'shifted' if model.shifted else 'block_length'} "
        "looks beyond them: set it to false",
    )


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain nested dictionaries and lists, as JSON and YAML read them back."""
    content: dict[str, Any] = asdict(
        config, dict_factory=lambda pairs: {k: list(v) if isinstance(v, tuple) else v for k, v in pairs}
    )
    # Left out where there are none, as configs were before there were any: their runs are the same.
    for section, name in (
        (content, "plugins"),
        (content["model"]["router"], "options"),
        (content["objective"], "options"),
    ):
        value = section.pop(name)
        if value:
            section[name] = dict(value) if name == "options" else value
    return content


def to_yaml(config: RunConfig) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def config_hash(config: RunConfig, *, with_seed: bool = True) -> str:
    """Sixteen hex digits that are equal when the configs are equal; without the seed they name the arm."""
    return content_hash(to_dict(config), with_seed=with_seed)


def content_hash(config: Mapping[str, Any], *, with_seed: bool = True) -> str:
    """The same of a config as plain dictionaries, such as a record's; of a field that this version lacks too."""
    content = {key: value for key, value in config.items() if with_seed or key != "seed"}
    if isinstance(data := content.get("data"), Mapping) and data.get("held_out_share", 0) is None:
        # As configs were hashed before there was one: their runs are the same.
        content["data"] = {key: value for key, value in data.items() if key != "held_out_share"}
    if plugins := content.pop("plugins", ()):  # what their code is counts, and not where it lies
        content["plugins"] = [Plugin.parse(each).label for each in plugins]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def known_keys(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a config and the type that it takes: of a key that names a registry's entry, their names."""
    return _keys(cls, prefix, ROUTERS.version, OBJECTIVES.version)


@cache
def _keys(cls: type, prefix: str, *versions: int) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for entry in fields(cls):
        registry: Registry[Any] | None = entry.metadata.get("registry")
        if is_dataclass(entry.type):
            keys |= _keys(entry.type, f"{prefix}{entry.name}.", *versions)  # type: ignore[arg-type]
        elif (kinds := entry.metadata.get("options")) is not None:
            keys |= option_keys(kinds, prefix)
        else:
            keys[f"{prefix}{entry.name}"] = entry.type if registry is None else Literal[tuple(registry)]
    return keys


def get_field(config: Any, key: str) -> Any:
    """The value at a dotted key of a config or a part of one."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
