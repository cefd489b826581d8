"""The classes that transformers ships: OLMoE's, Qwen2's, Llama's, as transformers 5.23 has them."""

from typing import Any

from core.config.model import ModelConfig
from core.errors import UserError
from core.interchange.family import (
    DENSE,
    NO_BIAS,
    OFF,
    Keys,
    Layout,
    head_size,
    inner_theta,
    llama_name,
    no_experts,
    read_experts,
    read_llama,
    write_experts,
    write_llama,
)

SPARSE = {"dense_layers": (), "shared_expert_width": 0}
THETA = 1e4  # of a class that is told none
SHARED_DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
REFUSED = {"hidden_act": ("silu", "swish"), "quantization_config": (None,), "per_layer_config": (None,)}


def _read(said: Keys) -> dict[str, Any]:
    fields = read_llama(said)
    own = said.get("head_dim") is not None
    head = said.whole("head_dim") if own else head_size(said, "hidden_size", "num_attention_heads")
    return fields | {"head_dim": head, "rope_theta": _theta(said)}


def _theta(said: Keys) -> float:
    """RoPE's base: that of rope_scaling or rope_parameters comes before the key of its own, as in transformers."""
    key = "rope_scaling" if said.mapping("rope_scaling") else "rope_parameters"
    theta = inner_theta(key, said.mapping(key))
    if theta is None:
        return THETA if said.get("rope_theta") is None else said.number("rope_theta")
    return theta


def _write(model: ModelConfig) -> dict[str, Any]:
    return write_llama(model) | {"rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta}}


def _read_olmoe(said: Keys) -> dict[str, Any]:
    width, renormalise = said.whole("intermediate_size"), said.flag("norm_topk_prob")
    return _read(said) | read_experts(said, width, renormalise=renormalise)


def _read_qwen2(said: Keys) -> dict[str, Any]:
    kinds = said.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise UserError(f"config.json: layer_types={kinds} isn't supported; all would have to be full_attention")
    return _read(said) | no_experts(said.whole("intermediate_size"))


def _write_qwen2(model: ModelConfig) -> dict[str, Any]:
    return _write(model) | {
        "intermediate_size": model.dense_width,
        "head_dim": model.head_dim,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": model.num_layers,
        "layer_types": ["full_attention"] * model.num_layers,
    }


def _write_llama(model: ModelConfig) -> dict[str, Any]:
    return _write(model) | {
        "intermediate_size": model.dense_width,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": model.head_dim,
        "pretraining_tp": 1,
    }


OLMOE_DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 50_304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": None, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "clip_qkv": None, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False, "router_aux_loss_coef": 0.01,
}  # fmt: skip
QWEN2_DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
    "use_sliding_window": False, "layer_types": None, "head_dim": None,
}  # fmt: skip
LLAMA_DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "mlp_bias": False, "head_dim": None,
}  # fmt: skip

OLMOE = Layout(  # allenai/OLMoE-1B-7B-0924
    "OlmoeForCausalLM",
    ("olmoe",),
    {"qk_norm": "projection"} | NO_BIAS | SPARSE,
    OLMOE_DEFAULTS,
    _read_olmoe,
    lambda model: _write(model) | write_experts(model) | {"intermediate_size": model.width_of_expert},
    llama_name,
    REFUSED | {"attention_bias": OFF, "clip_qkv": (None,)},
)
QWEN2 = Layout(  # Qwen/Qwen2.5-3B
    "Qwen2ForCausalLM",
    ("qwen2",),
    {"qk_norm": "none", "qkv_bias": True} | DENSE,
    QWEN2_DEFAULTS,
    _read_qwen2,
    _write_qwen2,
    llama_name,
    REFUSED | {"use_sliding_window": OFF},
    ignored={"attention_bias": (True, None)},  # queries, keys and values have biases, whatever it says
)
LLAMA = Layout(
    "LlamaForCausalLM",
    ("llama",),
    {"qk_norm": "none"} | NO_BIAS | DENSE,
    LLAMA_DEFAULTS,
    lambda said: _read(said) | no_experts(said.whole("intermediate_size")),
    _write_llama,
    llama_name,
    REFUSED | {"attention_bias": OFF, "mlp_bias": OFF},
)
