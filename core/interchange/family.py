"""Base of checkpoint families: facts about their class, and the reading of config.json keys.

A key that a config.json leaves out means what the class takes for it, so that both read one file as the same model.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config.model import ModelConfig, RouterConfig
from core.errors import UserError

# What every layout leaves out.
COMMON = {
    "router.kind": "topk",
    "router.scores": "softmax",
    "router.gate_scale": 1.0,
    "shifted": False,
    "block_length": None,
}
DENSE = {"num_experts": 0}
NO_BIAS = {"qkv_bias": False}
OFF = (False, None)


class Keys:
    """A config.json with the class's defaults under it. Each getter raises UserError that names the key."""

    def __init__(self, said: Mapping[str, Any], defaults: Mapping[str, Any], within: str = "") -> None:
        self._said, self._within = dict(defaults) | dict(said), within

    def get(self, key: str) -> Any:
        """The value as it is; None where there is none."""
        return self._said.get(key)

    def whole(self, key: str) -> int:
        """A whole number that has to be there."""
        value = self._said.get(key)
        if value is None:
            raise UserError(f"config.json lacks the key '{key}'")
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"config.json: {key}={value!r} must be a whole number")
        if abs(value) >= 2**63:
            raise UserError(f"config.json: {key} has {len(str(value))} digits")
        return value

    def whole_or(self, key: str, other: int) -> int:
        """A whole number, or another where it is null."""
        return other if self._said.get(key) is None else self.whole(key)

    def number(self, key: str) -> float:
        """A number that has to be there."""
        value = self._said.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"config.json lacks the key '{self._within}{key}'"
                if value is None
                else f"config.json: {self._within}{key}={value!r} must be a number"
            )
        if abs(value) == math.inf or value != value or abs(value) > sys.float_info.max:
            raise UserError(f"config.json: {self._within}{key} must be a finite number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; null is false."""
        value = self._said.get(key)
        if value not in (True, False, None) or (isinstance(value, int) and not isinstance(value, bool)):
            raise UserError(f"config.json: {key}={value!r} must be true or false")
        return bool(value)

    def token(self, key: str) -> int | None:
        """A token's id; the first of several; None where it is null or negative, which stands for none."""
        value = self._said.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"config.json: {key}={value!r} must be a token's id")
        return None if value is None or value < 0 else value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object of keys; empty where it is null."""
        value = self._said.get(key)
        if not isinstance(value, dict | None):
            raise UserError(f"config.json: {key}={value!r} must be an object")
        return value or {}


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints.

    model_types: what config.json may call the family; the first is written. fixed: the config fields that the family's class
    leaves no choice in. defaults: what the class takes for keys that a config.json leaves out. refused: keys that ask for
    what isn't built here, with the values that don't. ignored: keys that the class doesn't look at, with what it does. read,
    write: of a config.json what only this family says. code: where the class's source lies on the Hugging Face hub, for
    transformers' AutoModel; None where transformers has the class.
    """

    architecture: str
    model_types: tuple[str, ...]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    read: Callable[[Keys], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    rename: Callable[[str], str]
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    code: Mapping[str, str] | None = None
    causal_as_shipped: bool = True

    @property
    def says_head_dim(self) -> bool:
        """True where heads may be of any size, rather than of the hidden size over their number."""
        return "head_dim" in self.defaults

    @property
    def has_auxiliary_loss(self) -> bool:
        """True where the class adds a load-balancing loss of its own."""
        return "router_aux_loss_coef" in self.defaults


def llama_name(ours: str) -> str:
    """A weight's name in the classes that follow Llama's."""
    parts = {
        "embed.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head.", "layers.": "model.layers.",
    }  # fmt: skip
    prefix = next(part for part in parts if ours.startswith(part))
    theirs = parts[prefix] + ours.removeprefix(prefix)
    for before, after in (
        ("moe.router.weight_ED", "mlp.gate.weight"), ("moe.shared_expert.", "shared_expert."), (".dense.", ".mlp."),
        (".attention.", ".self_attn."), ("input_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
    ):  # fmt: skip
        theirs = theirs.replace(before, after)
    return theirs


def read_llama(said: Keys) -> dict[str, Any]:
    """The fields that all classes after Llama's share, but for RoPE and the heads' size."""
    return {
        "vocab_size": said.whole("vocab_size"),
        "hidden_size": said.whole("hidden_size"),
        "num_layers": said.whole("num_hidden_layers"),
        "num_heads": said.whole("num_attention_heads"),
        "num_kv_heads": kv_heads(said, "num_attention_heads", "num_key_value_heads"),
        "tied_embeddings": said.flag("tie_word_embeddings"),
        "max_positions": said.whole("max_position_embeddings"),
        "norm_eps": said.number("rms_norm_eps"),
        "init_std": said.number("initializer_range"),
    }


def write_llama(model: ModelConfig) -> dict[str, Any]:
    """The keys that all classes after Llama's share."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tied_embeddings,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "attention_dropout": 0.0,
        "use_cache": model.causal,
        "bos_token_id": None,
    }


def no_experts(width: int) -> dict[str, Any]:
    """The fields of a dense model."""
    return {"num_experts": 0, "top_k": 0, "expert_width": 0, "dense_width": width}


def read_experts(said: Keys, width: int, *, renormalise: bool) -> dict[str, Any]:
    """The fields of a mixture of experts of a width."""
    return {
        "num_experts": said.whole("num_experts"), "top_k": said.whole("num_experts_per_tok"), "expert_width": width,
        "router": RouterConfig(renormalise=renormalise),
    }  # fmt: skip


def write_experts(model: ModelConfig) -> dict[str, Any]:
    """The keys of a mixture of experts."""
    return {
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": model.router.renormalise,
        "output_router_logits": False,
        "attention_bias": False,
        "clip_qkv": None,
    }


def kv_heads(said: Keys, heads: str, key: str) -> int | None:
    """The heads of keys and values under a key; None where there are as many as of queries."""
    return None if said.get(key) in (None, said.whole(heads)) else said.whole(key)


def head_size(said: Keys, size: str, heads: str) -> int:
    """The hidden size over the heads. Raises UserError where they don't divide it, naming the key."""
    if said.whole(heads) < 1 or said.whole(size) % said.whole(heads):
        raise UserError(f"config.json: {heads}={said.whole(heads)} must divide {size}={said.whole(size)}")
    return said.whole(size) // said.whole(heads)


def plain_theta(said: Keys) -> float:
    """RoPE's base of a class that has one key for it. Raises UserError where another key says otherwise."""
    theta = said.number("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        inner = said.mapping(key)
        if inner and not {"rope_type", "type"} & set(inner) and set(inner) - {"rope_theta"}:
            raise UserError(f"config.json: {key}={dict(inner)} names no rope_type; it would have to be absent")
        other = inner_theta(key, inner)
        if other is not None and other != theta:
            raise UserError(
                f"config.json: rope_theta={theta:g} and {key}.rope_theta={other:g} differ: keep the right one"
            )
    return theta


def inner_theta(key: str, parameters: Mapping[str, Any]) -> float | None:
    """The base that RoPE's parameters say, where they do. Raises UserError for every kind of scaled RoPE."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(f"config.json: rope scaling '{kind}' isn't supported; it would have to be 'default' or absent")
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UserError(f"config.json: {key} by kind of layer isn't supported; one for all layers would be")
    return None if parameters.get("rope_theta") is None else Keys(parameters, {}, f"{key}.").number("rope_theta")


def refuse(said: Keys, refused: Mapping[str, Sequence[Any]]) -> None:
    """Raise UserError for the first key with a value that isn't built here."""
    for key, allowed in refused.items():
        if said.get(key) not in allowed:
            raise UserError(
                f"config.json: {key}={said.get(key)} isn't supported; it would have to be {_shown(allowed[0])}"
            )


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
