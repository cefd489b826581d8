"""Configuration of one run: frozen dataclasses with checks.

Building one refuses impossible values. core.config.loading builds it from files and `key=value` settings. The comment of a
field is its description in docs/configuration.md.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

import yaml

from core.config.model import ModelConfig, RouterConfig
from core.config.objective_kinds import OBJECTIVES, ObjectiveKind
from core.config.router_kinds import ROUTERS
from core.errors import require
from core.registry import Registry

__all__ = ["ModelConfig", "RouterConfig"]  # of the network, which core.config.model describes

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Training objective and auxiliary losses (LLaDA-MoE, arXiv 2509.24389, Eq. 2, 4 and 5)."""

    # masked_diffusion: Eq. 2. sft: Eq. 5, only responses are masked. autoregressive: next-token cross-entropy. vrpo:
    # preference tuning on likelihood bounds (LLaDA 1.5, arXiv 2505.19223)
    kind: str = field(default="masked_diffusion", metadata={"registry": OBJECTIVES})
    epsilon: float = 1e-3  # the masking probability is (1 - epsilon) t + epsilon
    timesteps: Literal["stratified", "antithetic", "uniform"] = "stratified"  # how the timesteps of a batch are drawn
    exact_mask_count: bool = False  # mask a fixed number of tokens per timestep instead of each token independently
    # weight of a masked token in training. bound: 1 / masking probability. cart: by the visible context around it (Dream)
    weighting: Literal["bound", "cart"] = "bound"
    cart_p: float = 0.1  # parameter of CART's geometric kernel, which reaches about 1 / p tokens to either side
    # length of diffusion blocks over training. constant: model.block_length. wsd: rises from 1 to the whole sequence, stays
    # there, falls to model.block_length (LLaDA2.0)
    block_schedule: Literal["constant", "wsd"] = "constant"
    block_warmup: float = 0.1  # share of the steps over which the block length rises (block_schedule=wsd)
    block_decay: float = 0.1  # share of the steps over which the block length falls (block_schedule=wsd)
    beta: float = 0.2  # vrpo: factor of the difference between the bound and the reference's bound, per nat
    draws: int = 8  # vrpo: timesteps per response, each with one mask
    load_balancing_weight: float = 0.01  # weight of the load-balancing loss, which is 1 at balance
    z_loss_weight: float = 0.001  # weight of the router z-loss

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
            self.weighting == "bound" or not (self.traits.causal or self.traits.pairs),
            f"objective.weighting={self.weighting} weighs masked tokens by what is visible around them, and "
            f"objective.kind={self.kind} doesn't learn so: use bound",
        )
        for name in ("load_balancing_weight", "z_loss_weight"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")

    @property
    def traits(self) -> ObjectiveKind:
        """Traits of this kind of objective."""
        return OBJECTIVES[self.kind]

    @property
    def sequences(self) -> int:
        """Sequences that the network computes for each example of a batch: of a pair both sides, once for each draw."""
        return 2 * self.draws if self.traits.pairs else 1


@dataclass(frozen=True)
class DataConfig:
    """Corpus, tokenizer, sequence lengths and the held-out part.

    On a share of the steps (`variable_length_share`) the whole batch has one length l ~ U[variable_length_min,
    sequence_length], so that no padding is computed (LLaDA-MoE, arXiv 2509.24389, Sec. 3).
    """

    # stdlib, shakespeare, text:PATH, hf:NAME, tokens:PATH, instructions:FILE, preferences:FILE, task:NAME, a synthetic
    # source, or a weighted mixture such as "0.7*stdlib + 0.3*text:PATH"
    corpus: str = "stdlib"
    tokenizer: str = "bytes"  # bytes, or the path of a tokenizer.json
    sequence_length: int = 128  # tokens per sequence
    validation_sequences: int = 128  # held-out sequences per validation
    held_out_share: float | None = None  # share of the data, by size, to hold out; null: by file names, else a tenth
    variable_length_share: float = 0.0  # share of the steps whose batch has a random, shorter length
    variable_length_min: int = 8  # shortest such length
    packing: bool = False  # put several prompts and responses into one sequence; they don't attend to one another
    chat_template: str = "roles"  # template of `messages` in instructions: a built-in one, or the path of a jinja file

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
    """AdamW and the learning-rate schedule: a linear warm-up to the peak, then one of three shapes.

    cosine falls to `final_lr_fraction` of the peak over all remaining steps. wsd (warm-up, stable, decay: MiniCPM, arXiv
    2404.06395, Sec. 4) stays at the peak, and falls to it linearly over the last `decay_fraction` of the steps, as in LLaDA
    (arXiv 2502.09992, Sec. 2.2 and 2.3). constant stays at the peak.
    """

    learning_rate: float = 2e-3  # peak learning rate
    beta1: float = 0.9  # AdamW's decay rate of the first moment
    beta2: float = 0.95  # AdamW's decay rate of the second moment
    weight_decay: float = 0.1  # decoupled weight decay of matrices; vectors have none
    warmup_steps: int = 20  # steps of the linear warm-up
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # shape after the warm-up
    decay_fraction: float = 0.1  # share of the steps over which schedule=wsd decays
    final_lr_fraction: float = 0.1  # last learning rate as a share of the peak
    gradient_clip: float = 1.0  # largest gradient norm; 0: no clipping

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
    """Length of training, batches, device and checkpoints."""

    steps: int = 300  # optimizer steps
    batch_size: int = 16  # sequences per step, over all devices and micro-batches
    validate_every: int = 100  # steps between validations; 0: only after the last step
    log_every: int = 10  # steps between rows of the training curve
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"  # device type; auto: CUDA where there is a GPU
    precision: Precision = "fp32"  # bf16: mixed precision, with weights in fp32
    compile: bool = False  # apply torch.compile to every layer
    initial_weights: str | None = None  # a model.safetensors of the same shapes to start from; null: random weights
    strategy: Literal["single", "deepspeed"] = "single"  # single: one device. deepspeed: any number, under DeepSpeed
    accumulate: int = 1  # micro-batches per step
    activation_checkpointing: bool = False  # recompute each layer in the backward pass instead of keeping activations
    checkpoint_every: int = 0  # steps between checkpoints; 0: none, an interrupted run starts again
    keep_best: str | None = None  # a validation metric at whose best value the weights are kept beside the final ones
    stop_on_alarm: bool = False  # end the run as failed at its first alarm (collapse, dead experts, spikes)

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
    """DeepSpeed's layout of a run over devices (trainer.strategy=deepspeed)."""

    # ZeRO stage (arXiv 1910.02054). 1: optimizer states are partitioned, 2: gradients too, 3: parameters too
    stage: Literal[0, 1, 2, 3] = 2
    expert_parallel: int = 1  # devices over which the experts are spread; each such group holds every expert once
    offload: Literal["none", "optimizer", "parameters"] = "none"  # states kept in host memory
    json: str | None = None  # a DeepSpeed configuration file, merged over these fields

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
    """Configuration of one run. Two runs of equal configurations on equal data are the same run."""

    seed: int = 0  # seed of initial weights, data order, timesteps and masks
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
        return self.trainer.batch_size * length * self.objective.sequences


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


def _check_schedule(config: RunConfig) -> None:
    optimizer, steps = config.optimizer, config.trainer.steps
    require(
        optimizer.schedule != "wsd" or optimizer.warmup_steps + decay_steps(config) <= steps,
        f"optimizer.warmup_steps={optimizer.warmup_steps} and a decay over {decay_steps(config)} steps "
        f"(optimizer.decay_fraction) don't fit into trainer.steps={steps}: shorten the warm-up",
    )


def _check_packing(config: RunConfig) -> None:
    model, traits = config.model, config.objective.traits
    require(
        not config.data.packing or (traits.responses and not traits.pairs),
        f"data.packing=true packs prompts and responses, and objective.kind={traits.name} learns whole sequences: set it to "
        "false",
    )
    require(
        not config.data.packing or not model.num_experts or not model.router.traits.experts_choose,
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
        else:
            keys[f"{prefix}{entry.name}"] = entry.type if registry is None else Literal[tuple(registry)]
    return keys


def get_field(config: Any, key: str) -> Any:
    """The value at a dotted key of a config or a part of one."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
