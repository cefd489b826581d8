"""What one run is: typed, frozen, whole.

A config never changes once it is built; impossible shapes are refused as it is. core.settings builds one from files and
`key=value` settings.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import yaml

from core.errors import UserError

RouterKind = Literal[
    "topk",
    "bias_balanced",
    "additive",
    "film",
    "bin_bias",
    "timestep_only",
    "unmodulated",
    "adaptive_k",
    "expert_choice",
    "soft",
    "hash",
    "random",
]
TOLD_TIMESTEP = ("additive", "film", "bin_bias", "timestep_only", "unmodulated")  # kinds whose logits depend on it
BY_RATIO = ("adaptive_k", "expert_choice")  # kinds whose compute may follow the mask ratio
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class RouterConfig:
    """How tokens choose experts: each kind is a class of core.model.routers.

    sees: what kinds that are told a timestep get as one; "shuffled" and "constant" are controls of equal parameters.
    """

    kind: RouterKind = "topk"
    sees: Literal["timestep", "mask_ratio", "shuffled", "constant"] = "timestep"
    time_features: int = 64  # of the timestep's embedding
    time_bins: int = 10  # bin_bias only
    k_schedule: Literal["constant", "linear", "linear_reverse"] | None = None  # None: the kind's own
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False  # LLaDA-MoE and OLMoE: softmax over all experts, then top-k, gates as they are
    gate_scale: float = 1.0  # what all gates are multiplied by (DeepSeek-V3's routed_scaling_factor)
    bias_update_rate: float = 1e-3  # bias_balanced only: how far a step moves an expert's bias

    def __post_init__(self) -> None:
        for name in ("gate_scale", "bias_update_rate"):
            _require(getattr(self, name) > 0, f"model.router.{name} must be positive, not {getattr(self, name)}")
        _require(self.time_bins >= 1, f"model.router.time_bins must be at least 1, not {self.time_bins}")
        _require(
            self.time_features >= 2 and self.time_features % 2 == 0,
            f"model.router.time_features={self.time_features} must be even and at least 2: sines and cosines",
        )
        _require(
            self.sees == "timestep" or self.kind in TOLD_TIMESTEP,
            f"model.router.sees={self.sees} means nothing to model.router.kind={self.kind}, which is told no timestep: "
            f"leave it out, or use one of {', '.join(TOLD_TIMESTEP)}",
        )
        _require(
            self.k_schedule is None or self.kind in BY_RATIO,
            f"model.router.k_schedule={self.k_schedule} means nothing to model.router.kind={self.kind}: leave it out, or "
            f"use one of {', '.join(BY_RATIO)}",
        )
        _require(
            not (self.kind == "adaptive_k" and self.k_schedule == "constant"),
            "model.router.k_schedule=constant with model.router.kind=adaptive_k is model.router.kind=topk: use that",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The network: a pre-norm transformer whose feed-forward layers are sparse mixtures of SwiGLU experts, or dense.

    num_experts = 0 makes every layer dense (then top_k and expert_width are 0 too); dense_layers lists single layers
    that are dense in a sparse model. granularity splits every expert into that many narrower ones, of which as many
    times more are chosen: parameters and FLOPs stay as they are (arXiv 2402.07871); num_experts, top_k and expert_width
    count before the split, `experts`, `experts_per_token` and `width_of_expert` after it.
    """

    vocab_size: int = 259  # 256 bytes + mask, eos, pad
    mask_id: int | None = 256  # None: no mask token (autoregressive models)
    eos_id: int | None = 257
    pad_id: int | None = 258
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None  # fewer than num_heads: grouped-query attention; None: as many
    head_dim: int = 32
    causal: bool = False
    qk_norm: Literal["head", "projection", "none"] = "head"  # RMSNorm per head, over the whole projection, or none
    qkv_bias: bool = False
    tied_embeddings: bool = False
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 64
    granularity: int = 1
    shared_expert_width: int = 0  # an expert that every token meets, ungated; 0: none
    dense_layers: tuple[int, ...] = ()
    dense_width: int = 0  # of the dense layers' SwiGLU
    router: RouterConfig = field(default_factory=RouterConfig)
    rope_theta: float = 1e4
    max_positions: int = 8192
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "head_dim",
            "granularity",
            "max_positions",
        ):
            _require(getattr(self, name) >= 1, f"model.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rope_theta", "norm_eps", "init_std"):
            _require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        _require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        _check_special_tokens(self)
        _require(
            1 <= self.kv_heads <= self.num_heads and self.num_heads % self.kv_heads == 0,
            f"model.num_kv_heads={self.num_kv_heads} must divide model.num_heads={self.num_heads}",
        )
        _check_experts(self) if self.num_experts else _check_dense(self)

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def experts(self) -> int:
        """Experts of a sparse layer, after the split into finer ones."""
        return self.num_experts * self.granularity

    @property
    def experts_per_token(self) -> int:
        return self.top_k * self.granularity

    @property
    def experts_met(self) -> int:
        """How many experts a token meets on average: all of them under the soft router."""
        return self.experts if self.num_experts and self.router.kind == "soft" else self.experts_per_token

    @property
    def width_of_expert(self) -> int:
        return self.expert_width // self.granularity

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are mixtures of experts."""
        return tuple(i for i in range(self.num_layers) if self.num_experts and i not in self.dense_layers)


def _check_special_tokens(model: ModelConfig) -> None:
    for name in ("mask_id", "eos_id", "pad_id"):
        token = getattr(model, name)
        _require(
            token is None or 0 <= token < model.vocab_size,
            f"model.{name}={token} must lie in 0..{model.vocab_size - 1}, below model.vocab_size={model.vocab_size}",
        )
    _require(
        model.mask_id is None or model.mask_id not in (model.eos_id, model.pad_id),
        f"model.mask_id={model.mask_id} is also model.eos_id or model.pad_id: the mask needs a token of its own",
    )


def _check_experts(model: ModelConfig) -> None:
    for name in ("num_experts", "top_k"):
        _require(getattr(model, name) >= 1, f"model.{name} must be at least 1, not {getattr(model, name)}")
    _require(
        model.top_k <= model.num_experts,
        f"model.top_k={model.top_k} exceeds model.num_experts={model.num_experts}: a token can't reach more experts "
        f"than there are; use top_k <= {model.num_experts}",
    )
    _require(
        model.expert_width >= 4 * model.granularity and model.expert_width % (4 * model.granularity) == 0,
        f"model.expert_width={model.expert_width} must be a multiple of {4 * model.granularity}"
        + (f" at model.granularity={model.granularity}" if model.granularity > 1 else "")
        + ": grouped matmul needs 16-byte rows",
    )
    _require(
        model.hidden_size % 4 == 0,
        f"model.hidden_size={model.hidden_size} must be a multiple of 4: grouped matmul needs 16-byte rows",
    )
    _require(
        model.router.kind != "adaptive_k" or 2 * model.experts_per_token - 1 <= model.experts,
        f"model.router.kind=adaptive_k gives up to 2 k - 1 = {2 * model.experts_per_token - 1} experts to a token, and "
        f"there are {model.experts}: use a smaller model.top_k",
    )
    _require(
        model.shared_expert_width >= 0,
        f"model.shared_expert_width must not be negative, not {model.shared_expert_width}; 0 means none",
    )
    _require(
        sorted(set(model.dense_layers)) == sorted(model.dense_layers)
        and all(0 <= i < model.num_layers for i in model.dense_layers),
        f"model.dense_layers={list(model.dense_layers)} must list different layers of 0..{model.num_layers - 1}",
    )
    _require(
        len(model.dense_layers) < model.num_layers,
        "model.dense_layers lists every layer: a dense model is model.num_experts=0 (with top_k=0, expert_width=0)",
    )
    _require(
        (model.dense_width >= 1) == bool(model.dense_layers),
        f"model.dense_width={model.dense_width} must be positive when model.dense_layers lists a layer, and 0 when not",
    )


def _check_dense(model: ModelConfig) -> None:
    for name, empty in (
        ("top_k", 0),
        ("expert_width", 0),
        ("shared_expert_width", 0),
        ("granularity", 1),
        ("dense_layers", ()),
    ):
        _require(
            getattr(model, name) == empty,
            f"model.{name}={getattr(model, name)} means nothing in a dense model (model.num_experts=0): set it to {empty}",
        )
    _require(model.dense_width >= 1, "model.dense_width must be at least 1 in a dense model (model.num_experts=0)")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised, and the auxiliary losses beside it (LLaDA-MoE Eq. 4).

    masked_diffusion is Eq. 2; sft is Eq. 5 (only responses are masked); autoregressive is the cross-entropy of the
    next token.
    """

    kind: Literal["masked_diffusion", "sft", "autoregressive"] = "masked_diffusion"
    epsilon: float = 1e-3  # masking probability is (1 - epsilon) t + epsilon
    timesteps: Literal["stratified", "antithetic", "uniform"] = "stratified"
    exact_mask_count: bool = False  # mask a fixed number of tokens for each timestep rather than each by chance
    load_balancing_weight: float = 0.01
    z_loss_weight: float = 0.001

    def __post_init__(self) -> None:
        _require(0 < self.epsilon < 1, f"objective.epsilon must lie in (0, 1), not {self.epsilon}")
        for name in ("load_balancing_weight", "z_loss_weight"):
            _require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class DataConfig:
    """What is learned: a corpus, cut into sequences, with files or sequences held out for validation.

    On a share of the steps (`variable_length_share`) the whole batch is drawn at one length l ~ U[variable_length_min,
    sequence_length], so that no padding is computed (LLaDA-MoE, arXiv 2509.24389, Sec. 3).
    """

    corpus: str = "stdlib"  # stdlib, text:PATH, shakespeare, hf:NAME, tokens:PATH, instructions:FILE, or a source
    tokenizer: str = "bytes"  # bytes, or the path of a tokenizer.json
    sequence_length: int = 128
    validation_sequences: int = 128
    variable_length_share: float = 0.0
    variable_length_min: int = 8

    def __post_init__(self) -> None:
        _require(self.sequence_length >= 2, f"data.sequence_length must be at least 2, not {self.sequence_length}")
        _require(
            self.validation_sequences >= 1,
            f"data.validation_sequences must be at least 1, not {self.validation_sequences}",
        )
        _require(
            0 <= self.variable_length_share <= 1,
            f"data.variable_length_share must lie in [0, 1], not {self.variable_length_share}",
        )
        _require(
            not self.variable_length_share or 2 <= self.variable_length_min <= self.sequence_length,
            f"data.variable_length_min={self.variable_length_min} must lie in 2..data.sequence_length="
            f"{self.sequence_length}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to `final_lr_fraction` of the peak."""

    learning_rate: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    warmup_steps: int = 20
    final_lr_fraction: float = 0.1
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"optimizer.learning_rate must be positive, not {self.learning_rate}")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "gradient_clip"):
            _require(getattr(self, name) >= 0, f"optimizer.{name} must not be negative, not {getattr(self, name)}")
        _require(
            0 <= self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction must lie in [0, 1], not {self.final_lr_fraction}",
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
    stop_on_alarm: bool = False  # end a run as failed at its first alarm (collapse, dead experts, spikes)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "accumulate"):
            _require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("validate_every", "checkpoint_every"):
            _require(getattr(self, name) >= 0, f"trainer.{name} must not be negative, not {getattr(self, name)}")
        _require(
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
        _require(self.stage in (0, 1, 2, 3), f"deepspeed.stage must be 0, 1, 2 or 3, not {self.stage}")
        _require(self.expert_parallel >= 1, f"deepspeed.expert_parallel must be at least 1, not {self.expert_parallel}")
        _require(
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
        _require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        _check_precision(self)
        _check_strategy(self)
        _check_objective(self)

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step, on average where lengths vary."""
        data = self.data
        short = (data.variable_length_min + data.sequence_length) / 2
        length = data.sequence_length + data.variable_length_share * (short - data.sequence_length)
        return self.trainer.batch_size * length


def _check_precision(config: RunConfig) -> None:
    model = config.model
    split = model.granularity
    for name, multiple in (("hidden_size", 8), ("expert_width", 8 * split)):
        width = getattr(model, name)
        _require(
            config.trainer.precision == "fp32" or not model.num_experts or width % multiple == 0,
            f"model.{name}={width} must be a multiple of {multiple} under trainer.precision=bf16: grouped matmul needs "
            "16-byte rows",
        )


def _check_strategy(config: RunConfig) -> None:
    trainer, model, spread = config.trainer, config.model, config.deepspeed
    if trainer.strategy == "single":
        _require(
            spread == DeepSpeedConfig(),
            "deepspeed.* is set, but trainer.strategy=single trains without DeepSpeed: set trainer.strategy=deepspeed",
        )
        return
    parallel = spread.expert_parallel
    _require(
        parallel == 1 or model.num_experts > 0,
        f"deepspeed.expert_parallel={parallel} needs experts, and model.num_experts=0 is dense: set it to 1",
    )
    _require(
        model.experts % parallel == 0,
        f"deepspeed.expert_parallel={parallel} must divide the {model.experts} experts (model.num_experts)",
    )
    _require(
        trainer.precision == "fp32" or spread.stage >= 1,
        "trainer.precision=bf16 with deepspeed.stage=0 keeps no fp32 copy of the experts and leaves them out of the "
        "gradient's norm: use deepspeed.stage=1 or more",
    )
    _require(
        not (spread.stage == 3 and model.tied_embeddings),
        "deepspeed.stage=3 gathers a parameter for the layer that owns it, and model.tied_embeddings=true shares one "
        "between two: use deepspeed.stage=2",
    )
    _require(
        not trainer.compile, "trainer.compile=true isn't supported with trainer.strategy=deepspeed: set it to false"
    )


def _check_objective(config: RunConfig) -> None:
    model, kind = config.model, config.objective.kind
    if kind == "autoregressive":
        _require(model.causal, "objective.kind=autoregressive needs model.causal=true: else it sees what it predicts")
        unfit = (*TOLD_TIMESTEP, *BY_RATIO)
        _require(
            not model.num_experts or model.router.kind not in (*unfit, "random"),
            f"model.router.kind={model.router.kind} depends on how much of a sequence is masked or on tokens to come, and "
            "objective.kind=autoregressive masks nothing: use topk",
        )
        _require(model.eos_id is not None, "objective.kind=autoregressive starts sequences with eos: set model.eos_id")
    else:
        _require(
            not model.causal,
            f"objective.kind={kind} needs model.causal=false: a masked token is predicted from both sides",
        )
        _require(model.mask_id is not None, f"objective.kind={kind} needs a mask token: set model.mask_id")
    _require(
        kind != "sft" or not config.data.variable_length_share,
        "objective.kind=sft has the lengths of its responses: set data.variable_length_share to 0",
    )
    _require(
        config.data.sequence_length <= model.max_positions,
        f"data.sequence_length={config.data.sequence_length} exceeds model.max_positions={model.max_positions}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


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
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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
