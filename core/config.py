"""What one run is: typed, frozen, whole.

A config never changes once it is built; impossible shapes are refused as it is. core.settings builds one from files and
`key=value` settings.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import yaml

from core.errors import UserError

RouterKind = Literal["topk"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class RouterConfig:
    """How tokens choose experts."""

    kind: RouterKind = "topk"
    renormalise: bool = False  # LLaDA-MoE and OLMoE: softmax over all experts, then top-k, gates as they are


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser: a bidirectional transformer whose feed-forward layers are sparse mixtures of SwiGLU experts."""

    vocab_size: int = 259  # 256 bytes + mask, eos, pad
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int = 32
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 64
    router: RouterConfig = field(default_factory=RouterConfig)
    rope_theta: float = 1e4
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim", "num_experts", "top_k"):
            _require(getattr(self, name) >= 1, f"model.{name} must be at least 1, not {getattr(self, name)}")
        _require(
            self.top_k <= self.num_experts,
            f"model.top_k={self.top_k} exceeds model.num_experts={self.num_experts}: a token can't reach more experts "
            f"than there are; use top_k <= {self.num_experts}",
        )
        _require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        _require(
            self.expert_width >= 4 and self.expert_width % 4 == 0,
            f"model.expert_width={self.expert_width} must be a multiple of 4: grouped matmul needs 16-byte rows",
        )
        _require(
            self.hidden_size % 4 == 0,
            f"model.hidden_size={self.hidden_size} must be a multiple of 4: grouped matmul needs 16-byte rows",
        )
        for name in ("rope_theta", "norm_eps", "init_std"):
            _require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The masked-diffusion objective (LLaDA-MoE Eq. 2) and the auxiliary losses beside it (Eq. 4)."""

    epsilon: float = 1e-3  # masking probability is (1 - epsilon) t + epsilon
    timesteps: Literal["stratified", "uniform"] = "stratified"
    load_balancing_weight: float = 0.01
    z_loss_weight: float = 0.001

    def __post_init__(self) -> None:
        _require(0 < self.epsilon < 1, f"objective.epsilon must lie in (0, 1), not {self.epsilon}")
        for name in ("load_balancing_weight", "z_loss_weight"):
            _require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class DataConfig:
    """What is learned: a corpus, cut into sequences, with files or sequences held out for validation."""

    corpus: str = "stdlib"  # stdlib | markov | text:PATH
    sequence_length: int = 128
    validation_sequences: int = 128

    def __post_init__(self) -> None:
        _require(self.sequence_length >= 2, f"data.sequence_length must be at least 2, not {self.sequence_length}")
        _require(
            self.validation_sequences >= 1,
            f"data.validation_sequences must be at least 1, not {self.validation_sequences}",
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            _require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        _require(self.validate_every >= 0, f"trainer.validate_every must not be negative, not {self.validate_every}")


@dataclass(frozen=True)
class RunConfig:
    """One run, whole: two runs of equal configs on equal data are the same run."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        for name in ("hidden_size", "expert_width"):
            width = getattr(self.model, name)
            _require(
                self.trainer.precision == "fp32" or width % 8 == 0,
                f"model.{name}={width} must be a multiple of 8 under trainer.precision=bf16: grouped matmul needs "
                "16-byte rows",
            )

    @property
    def tokens_per_step(self) -> int:
        return self.trainer.batch_size * self.data.sequence_length


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain nested dictionaries, JSON-ready."""
    return asdict(config)


def to_yaml(config: RunConfig) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def config_hash(config: RunConfig, *, with_seed: bool = True) -> str:
    """Sixteen hex digits that are equal when the configs are equal; without the seed they name the arm."""
    content = to_dict(config)
    if not with_seed:
        del content["seed"]
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


def get(config: RunConfig, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
