"""Configuration of the network, and what a kind of router is. core.config.run has the rest of a run.

The comment of a field is its description in docs/configuration.md. core.config.router_kinds has the built-in kinds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from core.config.options import filled
from core.errors import require, require_limit
from core.registry import Registry

Schedule = Literal["constant", "linear", "linear_reverse", "cosine", "cosine_reverse", "gaussian", "gaussian_reverse"]
Shape = tuple[int, ...]

MOST_LAYERS = 10_000  # each is an object, also of models that are only counted


class Weight(NamedTuple):
    """A tensor of the network's state dict.

    per_sequence: it meets each sequence's timestep once, rather than every token. buffer: state that isn't learned.
    """

    name: str
    shape: Shape
    per_sequence: bool = False
    buffer: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def linear(model: "ModelConfig") -> tuple[Weight, ...]:
    """The weights of token choice: a bias-free linear map from hidden states to experts."""
    return (Weight("weight_ED", (model.experts, model.hidden_size)),)


@dataclass(frozen=True)
class RouterKind:
    """A kind of router.

    implementation: a subclass of core.model.routing.Router, or its name, "module:Class". weights: of one layer's router;
    None: those that the class registers, which takes torch to see. sees_timestep: logits depend on the timestep.
    follows_ratio: how much is computed may follow the mask ratio. experts_choose: experts take tokens and compete for them.
    sees_sequence: a token's experts depend on the other tokens of its sequence. all_experts: every token meets every expert.
    rows: rows among the experts' that a token has room for, on average; None: as many as experts that it meets. input_copies:
    copies of its input, in fp32, that it keeps for the backward pass. check, check_settings: refuse models and settings of
    the router that the kind can't have. settings: a frozen dataclass of the kind's own settings (model.router.options).
    """

    name: str
    implementation: Any
    weights: "Callable[[ModelConfig], tuple[Weight, ...]] | None" = linear
    sees_timestep: bool = False
    follows_ratio: bool = False
    experts_choose: bool = False
    sees_sequence: bool = False
    all_experts: bool = False
    rows: "Callable[[ModelConfig], float] | None" = None
    input_copies: int = 1
    check: "Callable[[ModelConfig], None] | None" = None
    check_settings: "Callable[[RouterConfig], None] | None" = None
    settings: type[Any] | None = None

    @property
    def routes_tokens_singly(self) -> bool:
        """True where a token's experts depend on its own hidden state alone."""
        return not (self.sees_timestep or self.follows_ratio or self.sees_sequence)


ROUTERS: Registry[RouterKind] = Registry("model.router.kind", folder="core.model.routers", light=False)


@dataclass(frozen=True)
class RouterConfig:
    """Router of the sparse layers. Its kind is a name in ROUTERS."""

    kind: str = field(default="topk", metadata={"registry": ROUTERS})  # routing rule, see the table in docs/models.md
    # input of a timestep-conditioned router. shuffled (another sequence's timestep) and constant are controls with equal
    # parameters
    sees: Literal["timestep", "mask_ratio", "shuffled", "constant"] = "timestep"
    time_features: int = 64  # width of the timestep's sinusoidal embedding
    time_bins: int = 10  # bin_bias: bins of the timestep
    k_schedule: Schedule | None = None  # number of experts per token against the mask ratio; null: the kind's default
    scores: Literal["softmax", "sigmoid"] = "softmax"  # function of the router logits
    renormalise: bool = False  # divide the chosen experts' gates by their sum; LLaDA-MoE and OLMoE don't
    gate_scale: float = 1.0  # factor of all gates (DeepSeek-V3's routed_scaling_factor)
    bias_update_rate: float = 1e-3  # bias_balanced: change of an expert's bias per step
    # settings of a kind of your own, by name
    options: dict[str, Any] = field(default_factory=dict, metadata={"options": ROUTERS})

    def __post_init__(self) -> None:
        traits = self.traits
        object.__setattr__(self, "options", filled(self.options, traits, "model.router"))
        require_limit(self, "model.router", "be positive", "gate_scale", "bias_update_rate")
        require_limit(self, "model.router", "be at least 1", "time_bins")
        require(
            self.time_features >= 2 and self.time_features % 2 == 0,
            f"model.router.time_features={self.time_features} must be even and at least 2: sines and cosines",
        )
        require(
            self.sees == "timestep" or traits.sees_timestep,
            f"model.router.sees={self.sees} means nothing to model.router.kind={self.kind}, which is told no timestep: "
            f"leave it out, or use one of {', '.join(kind.name for kind in ROUTERS.entries() if kind.sees_timestep)}",
        )
        require(
            self.k_schedule is None or traits.follows_ratio,
            f"model.router.k_schedule={self.k_schedule} means nothing to model.router.kind={self.kind}: leave it out, or "
            f"use one of {', '.join(kind.name for kind in ROUTERS.entries() if kind.follows_ratio)}",
        )
        if traits.check_settings is not None:
            traits.check_settings(self)

    @property
    def traits(self) -> RouterKind:
        """Traits of this kind of router."""
        return ROUTERS[self.kind]

    @property
    def settings(self) -> Any:
        """The options as the settings' dataclass of this kind."""
        return self.traits.settings and self.traits.settings(**self.options)


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm transformer whose feed-forward layers are sparse mixtures of SwiGLU experts, or dense.

    num_experts = 0 makes every layer dense (then top_k and expert_width are 0 too). num_experts, top_k and expert_width count
    before the split by granularity; `experts`, `experts_per_token` and `width_of_expert` count after it.
    """

    vocab_size: int = 259  # token ids; 256 bytes, mask, end and padding by default
    mask_id: int | None = 256  # id of the mask token; null: none (autoregressive models)
    eos_id: int | None = 257  # id of the end token
    pad_id: int | None = 258  # id of the padding token
    hidden_size: int = 128  # width of the residual stream
    num_layers: int = 4  # transformer layers
    num_heads: int = 4  # attention heads
    num_kv_heads: int | None = None  # key and value heads; fewer than num_heads: grouped-query attention; null: as many
    head_dim: int = 32  # width of a head
    causal: bool = False  # causal attention, for autoregressive models
    shifted: bool = False  # predict a token from the hidden state before it, as a causal network does (Dream)
    block_length: int | None = None  # block diffusion: tokens attend to their block and earlier ones; null: to all
    qk_norm: Literal["head", "projection", "none"] = "head"  # RMSNorm of queries and keys: per head, whole, or none
    qkv_bias: bool = False  # biases of the query, key and value projections
    tied_embeddings: bool = False  # the output layer shares the embedding's weights
    num_experts: int = 8  # experts per sparse layer; 0: a dense model
    top_k: int = 2  # experts per token
    expert_width: int = 64  # hidden width of an expert's SwiGLU
    # split each expert into this many narrower ones and choose as many times more, at equal parameters and FLOPs
    # (arXiv 2402.07871)
    granularity: int = 1
    shared_expert_width: int = 0  # width of an ungated expert that every token passes; 0: none
    dense_layers: tuple[int, ...] = ()  # indices of the dense layers of a sparse model
    dense_width: int = 0  # hidden width of the dense layers' SwiGLU
    router: RouterConfig = field(default_factory=RouterConfig)
    rope_theta: float = 1e4  # base of the rotary position embedding
    max_positions: int = 8192  # longest sequence
    norm_eps: float = 1e-5  # epsilon of RMSNorm
    init_std: float = 0.02  # standard deviation of the initial weights

    def __post_init__(self) -> None:
        require_limit(
            self, "model", "be at least 1", "vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim"
        )
        require_limit(self, "model", "be at least 1", "granularity", "max_positions", "block_length")
        require(
            self.num_layers <= MOST_LAYERS, f"model.num_layers must be at most {MOST_LAYERS}, not {self.num_layers}"
        )
        require_limit(self, "model", "be positive", "rope_theta", "norm_eps", "init_std")
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        _check_special_tokens(self)
        _check_blocks(self)
        require(
            not (self.causal and self.shifted),
            "model.shifted=true is of a network that sees both sides; with model.causal=true the state before a token "
            "predicts it anyway: leave it out",
        )
        require(
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
        """Mean number of experts per token: all of them under the soft router."""
        return self.experts if self.num_experts and self.router.traits.all_experts else self.experts_per_token

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
        require(
            token is None or 0 <= token < model.vocab_size,
            f"model.{name}={token} must lie in 0..{model.vocab_size - 1}, below model.vocab_size={model.vocab_size}",
        )
    require(
        model.mask_id is None or model.mask_id not in (model.eos_id, model.pad_id),
        f"model.mask_id={model.mask_id} is also model.eos_id or model.pad_id: the mask needs a token of its own",
    )


def _check_blocks(model: ModelConfig) -> None:
    if model.block_length is None:
        return
    require(
        not model.causal,
        f"model.block_length={model.block_length} with model.causal=true: inside a block tokens see both sides; leave one "
        "out",
    )
    require(
        not model.shifted,
        f"model.block_length={model.block_length} with model.shifted=true: the state before a block's first token doesn't "
        "see the block; leave one out",
    )
    require(
        not model.num_experts or model.router.traits.routes_tokens_singly,
        f"model.router.kind={model.router.kind} routes tokens by all of their sequence or by its noise, and with "
        f"model.block_length={model.block_length} a token may know of its block and those before it only: use topk",
    )


def _check_experts(model: ModelConfig) -> None:
    require_limit(model, "model", "be at least 1", "num_experts", "top_k")
    require(
        model.top_k <= model.num_experts,
        f"model.top_k={model.top_k} exceeds model.num_experts={model.num_experts}: a token can't reach more experts "
        f"than there are; use top_k <= {model.num_experts}",
    )
    require(
        model.expert_width >= 4 * model.granularity and model.expert_width % (4 * model.granularity) == 0,
        f"model.expert_width={model.expert_width} must be a multiple of {4 * model.granularity}"
        + (f" at model.granularity={model.granularity}" if model.granularity > 1 else "")
        + ": grouped matmul needs 16-byte rows",
    )
    require(
        model.hidden_size % 4 == 0,
        f"model.hidden_size={model.hidden_size} must be a multiple of 4: grouped matmul needs 16-byte rows",
    )
    require(
        model.shared_expert_width >= 0,
        f"model.shared_expert_width must not be negative, not {model.shared_expert_width}; 0 means none",
    )
    if model.router.traits.check is not None:
        model.router.traits.check(model)
    require(
        sorted(set(model.dense_layers)) == sorted(model.dense_layers)
        and all(0 <= i < model.num_layers for i in model.dense_layers),
        f"model.dense_layers={list(model.dense_layers)} must list different layers of 0..{model.num_layers - 1}",
    )
    require(
        len(model.dense_layers) < model.num_layers,
        "model.dense_layers lists every layer: a dense model is model.num_experts=0 (with top_k=0, expert_width=0)",
    )
    require(
        (model.dense_width >= 1) == bool(model.dense_layers),
        f"model.dense_width={model.dense_width} must be positive when model.dense_layers lists a layer, and 0 when not",
    )


def _check_dense(model: ModelConfig) -> None:
    empty_fields = {"top_k": 0, "expert_width": 0, "shared_expert_width": 0, "granularity": 1, "dense_layers": ()}
    for name, empty in empty_fields.items():
        require(
            getattr(model, name) == empty,
            f"model.{name}={getattr(model, name)} means nothing in a dense model (model.num_experts=0): set it to {empty}",
        )
    require(model.dense_width >= 1, "model.dense_width must be at least 1 in a dense model (model.num_experts=0)")
