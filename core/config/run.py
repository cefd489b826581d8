"""What one run is: typed, frozen, whole.

A config never changes once it is built; impossible shapes are refused as it is. core.config.loading builds one from files and
`key=value` settings.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

import yaml

from core.config.model import (
    BY_RATIO,
    EXPERTS_CHOOSE,
    SEES_OTHERS,
    TOLD_TIMESTEP,
    ModelConfig,
    RouterConfig,
    RouterKind,
)
from core.errors import require

__all__ = ["ModelConfig", "RouterConfig", "RouterKind"]  # of the network, which core.config.model describes

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised, and the auxiliary losses beside it (LLaDA-MoE Eq. 4).

    masked_diffusion is Eq. 2; sft is Eq. 5 (only responses are masked); autoregressive is the cross-entropy of the
    next token; vrpo prefers chosen responses to rejected ones by their bounds (LLaDA 1.5, arXiv 2505.19223).
    """

    kind: Literal["masked_diffusion", "sft", "autoregressive", "vrpo"] = "masked_diffusion"
    epsilon: float = 1e-3  # masking probability is (1 - epsilon) t + epsilon
    timesteps: Literal["stratified", "antithetic", "uniform"] = "stratified"
    exact_mask_count: bool = False  # mask a fixed number of tokens for each timestep rather than each by chance
    weighting: Literal["bound", "cart"] = "bound"  # of masked tokens in training: 1 / p, or Dream's by their context
    cart_p: float = 0.1  # of CART's geometric kernel: about 1 / p tokens on either side count
    block_schedule: Literal["constant", "wsd"] = (
        "constant"  # wsd: block lengths rise from 1 to the whole sequence, stay, and
    )
    block_warmup: float = 0.1  # fall back to model.block_length (LLaDA2.0); shares of the steps that it takes to rise
    block_decay: float = 0.1  # and to fall
    beta: float = 0.2  # vrpo: how much a nat of the bound, beyond the reference's, is worth
    draws: int = 8  # vrpo: timesteps of a response, each with one mask
    load_balancing_weight: float = 0.01
    z_loss_weight: float = 0.001

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, f"objective.epsilon must lie in (0, 1), not {self.epsilon}")
        for name in ("block_warmup", "block_decay"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")
        require(
            self.block_warmup + self.block_decay <= 1,
            f"objective.block_warmup={self.block_warmup} and objective.block_decay={self.block_decay} are shares of the "
            "steps: together at most 1",
        )
        require(self.beta > 0, f"objective.beta must be positive, not {self.beta}")
        require(self.draws >= 1, f"objective.draws must be at least 1, not {self.draws}")
        require(0 < self.cart_p < 1, f"objective.cart_p must lie in (0, 1), not {self.cart_p}")
        require(
            self.weighting == "bound" or self.kind in ("masked_diffusion", "sft"),
            f"objective.weighting={self.weighting} weighs masked tokens by what is visible around them, and "
            f"objective.kind={self.kind} doesn't learn so: use bound",
        )
        for name in ("load_balancing_weight", "z_loss_weight"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class DataConfig:
    """What is learned: a corpus, cut into sequences, with files or sequences held out for validation.

    On a share of the steps (`variable_length_share`) the whole batch is drawn at one length l ~ U[variable_length_min,
    sequence_length], so that no padding is computed (LLaDA-MoE, arXiv 2509.24389, Sec. 3).
    """

    # stdlib, text:PATH, shakespeare, hf:NAME, tokens:PATH, instructions:FILE, preferences:FILE, task:NAME, a source, or a
    # weighted mixture such as "0.7*stdlib + 0.3*text:PATH"
    corpus: str = "stdlib"
    tokenizer: str = "bytes"  # bytes, or the path of a tokenizer.json
    sequence_length: int = 128
    validation_sequences: int = 128
    held_out_share: float | None = None  # of the data, by size; null: what files' names say, else about a tenth
    variable_length_share: float = 0.0
    variable_length_min: int = 8
    packing: bool = False  # several prompts and responses in one sequence, none of which sees another
    chat_template: str = "roles"  # how instructions' messages are written: a built-in one, or the path of a jinja file

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, f"data.sequence_length must be at least 2, not {self.sequence_length}")
        require(
            self.validation_sequences >= 1,
            f"data.validation_sequences must be at least 1, not {self.validation_sequences}",
        )
        require(
            self.held_out_share is None or 0 < self.held_out_share < 1,
            f"data.held_out_share must lie in (0, 1), not {self.held_out_share}",
        )
        require(
            0 <= self.variable_length_share <= 1,
            f"data.variable_length_share must lie in [0, 1], not {self.variable_length_share}",
        )
        require(
            not self.variable_length_share or 2 <= self.variable_length_min <= self.sequence_length,
            f"data.variable_length_min={self.variable_length_min} must lie in 2..data.sequence_length="
            f"{self.sequence_length}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up to the peak, and what the learning rate does from there.

    cosine falls to `final_lr_fraction` of the peak over all remaining steps. wsd (warm-up, stable, decay: MiniCPM, arXiv
    2404.06395, Sec. 4) stays at the peak, and over the last `decay_fraction` of the steps falls to it along a straight line,
    as LLaDA's does (arXiv 2502.09992, Sec. 2.2 and 2.3). constant stays at the peak.
    """

    learning_rate: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    warmup_steps: int = 20
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay_fraction: float = 0.1  # wsd only
    final_lr_fraction: float = 0.1
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate must be positive, not {self.learning_rate}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "gradient_clip"):
            require(getattr(self, name) >= 0, f"optimizer.{name} must not be negative, not {getattr(self, name)}")
        require(
            0 <= self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction must lie in [0, 1], not {self.final_lr_fraction}",
        )
        require(0 < self.decay_fraction <= 1, f"optimizer.decay_fraction must lie in (0, 1], not {self.decay_fraction}")
        require(
            self.schedule == "wsd" or self.decay_fraction == OptimizerConfig.decay_fraction,
            f"optimizer.decay_fraction={self.decay_fraction} means nothing to optimizer.schedule={self.schedule}: leave it "
            "out, or use wsd",
        )


@dataclass(frozen=True)
class TrainerConfig:
    """How long and on what."""

    steps: int = 300
    batch_size: int = 16
    validate_every: int = 100  # steps; 0 = only at the end
    log_every: int = 10
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    compile: bool = False  # torch.compile of every layer
    initial_weights: str | None = None  # a model.safetensors of the same shape to start from, such as an imported one
    strategy: Literal["single", "deepspeed"] = "single"  # one device without an engine, or any number under DeepSpeed
    accumulate: int = 1  # micro-batches whose gradients make one step; batch_size is of the step, over all devices
    activation_checkpointing: bool = False  # compute each layer again in the backward pass rather than keep it
    checkpoint_every: int = 0  # steps; 0 = never: a run that is stopped starts again
    keep_best: str | None = None  # a validation metric: the weights at its best value are kept beside the final ones
    stop_on_alarm: bool = False  # end a run as failed at its first alarm (collapse, dead experts, spikes)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "accumulate"):
            require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("validate_every", "checkpoint_every"):
            require(getattr(self, name) >= 0, f"trainer.{name} must not be negative, not {getattr(self, name)}")
        require(
            self.batch_size % self.accumulate == 0,
            f"trainer.batch_size={self.batch_size} can't be split into trainer.accumulate={self.accumulate} "
            "micro-batches: use a multiple",
        )


@dataclass(frozen=True)
class DeepSpeedConfig:
    """How DeepSpeed spreads a run over devices (trainer.strategy=deepspeed).

    The stage is ZeRO's (arXiv 1910.02054): 1 spreads the optimizer's state, 2 the gradients too, 3 the parameters too.
    With expert_parallel = N each group of N devices holds every expert once, and tokens travel to them.
    """

    stage: Literal[0, 1, 2, 3] = 2
    expert_parallel: int = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"  # what is kept in host memory
    json: str | None = None  # a DeepSpeed configuration file, merged over what the fields say

    def __post_init__(self) -> None:
        require(self.stage in (0, 1, 2, 3), f"deepspeed.stage must be 0, 1, 2 or 3, not {self.stage}")
        require(self.expert_parallel >= 1, f"deepspeed.expert_parallel must be at least 1, not {self.expert_parallel}")
        require(
            self.offload == "none" or self.stage >= (3 if self.offload == "parameters" else 1),
            f"deepspeed.offload={self.offload} needs deepspeed.stage={3 if self.offload == 'parameters' else '1 to 3'}, "
            f"not {self.stage}: nothing else is spread that could be kept in host memory",
        )


@dataclass(frozen=True)
class RunConfig:
    """One run, whole: two runs of equal configs on equal data are the same run."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)

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
        sequences = 2 * self.objective.draws if self.objective.kind == "vrpo" else 1  # of a pair
        return self.trainer.batch_size * length * sequences


def _check_precision(config: RunConfig) -> None:
    model = config.model
    split = model.granularity
    for name, multiple in (("hidden_size", 8), ("expert_width", 8 * split)):
        width = getattr(model, name)
        require(
            config.trainer.precision == "fp32" or not model.num_experts or width % multiple == 0,
            f"model.{name}={width} must be a multiple of {multiple} under trainer.precision=bf16: grouped matmul needs "
            "16-byte rows",
        )


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
    model, kind = config.model, config.objective.kind
    if kind == "autoregressive":
        require(model.causal, "objective.kind=autoregressive needs model.causal=true: else it sees what it predicts")
        unfit = (*TOLD_TIMESTEP, *BY_RATIO, *SEES_OTHERS)
        require(
            not model.num_experts or model.router.kind not in unfit,
            f"model.router.kind={model.router.kind} depends on how much of a sequence is masked or on tokens to come, and "
            "objective.kind=autoregressive masks nothing: use topk",
        )
        require(model.eos_id is not None, "objective.kind=autoregressive starts sequences with eos: set model.eos_id")
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
    if kind == "vrpo":
        require(
            config.trainer.initial_weights is not None,
            "objective.kind=vrpo compares with the model that it starts from: set trainer.initial_weights",
        )
        require(
            config.trainer.strategy == "single",
            "objective.kind=vrpo keeps a second network as its reference: use trainer.strategy=single",
        )
    require(
        kind not in ("sft", "vrpo") or not config.data.variable_length_share,
        f"objective.kind={kind} has the lengths of its responses: set data.variable_length_share to 0",
    )
    require(
        config.data.sequence_length <= model.max_positions,
        f"data.sequence_length={config.data.sequence_length} exceeds model.max_positions={model.max_positions}",
    )


def decay_steps(config: RunConfig) -> int:
    """How many of the last steps the learning rate falls over, under optimizer.schedule=wsd."""
    return max(1, round(config.optimizer.decay_fraction * config.trainer.steps))


def _check_schedule(config: RunConfig) -> None:
    optimizer, steps = config.optimizer, config.trainer.steps
    require(
        optimizer.schedule != "wsd" or optimizer.warmup_steps + decay_steps(config) <= steps,
        f"optimizer.warmup_steps={optimizer.warmup_steps} and a decay over {decay_steps(config)} steps "
        f"(optimizer.decay_fraction) don't fit into trainer.steps={steps}: shorten the warm-up",
    )


def _check_packing(config: RunConfig) -> None:
    model, kind = config.model, config.objective.kind
    require(
        not config.data.packing or kind == "sft",
        f"data.packing=true packs prompts and responses, and objective.kind={kind} learns whole sequences: set it to false",
    )
    require(
        not config.data.packing or not model.num_experts or model.router.kind not in EXPERTS_CHOOSE,
        f"data.packing=true with model.router.kind={model.router.kind} would let conversations compete for experts: use topk",
    )
    require(
        not config.data.packing or not (model.shifted or model.block_length),
        f"data.packing=true confines attention to conversations, and model.{'shifted' if model.shifted else 'block_length'} "
        "looks beyond them: set it to false",
    )


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain nested dictionaries and lists, as JSON and YAML read them back."""
    return asdict(config, dict_factory=lambda pairs: {k: list(v) if isinstance(v, tuple) else v for k, v in pairs})


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
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@cache
def known_keys(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a config and the type that it takes."""
    keys: dict[str, Any] = {}
    for entry in fields(cls):
        if is_dataclass(entry.type):
            keys |= known_keys(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            keys[f"{prefix}{entry.name}"] = entry.type
    return keys


def get_field(config: Any, key: str) -> Any:
    """The value at a dotted key of a config or a part of one."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
