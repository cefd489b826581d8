"""LLaDA-MoE's class (inclusionAI/LLaDA-MoE-7B-A1B-Base; LLaDAMoEModelLM, which its hub repository holds)."""

from typing import Any

from core.config.model import ModelConfig
from core.errors import UserError
from core.interchange.family import (
    NO_BIAS,
    OFF,
    Keys,
    Layout,
    head_size,
    llama_name,
    plain_theta,
    read_experts,
    read_llama,
    write_experts,
    write_llama,
)

REPOSITORY = "inclusionAI/LLaDA-MoE-7B-A1B-Base"
# As the class takes them, but for sizes, which it has none for, and partial_rotary_factor, with whose -1 it can't start.
DEFAULTS = {
    "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 4096, "initializer_range": 0.02,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_scaling": None, "attention_bias": False, "clip_qkv": None,
    "norm_topk_prob": None, "qk_layernorm": None, "moe_router_enable_expert_bias": None,
    "moe_router_score_function": None, "routed_scaling_factor": 1, "router_num_group": -2, "router_topk_group": -2,
    "router_aux_loss_coef": 0.01,
}  # fmt: skip


REFUSED = {
    "hidden_act": ("silu", "swish"), "attention_bias": OFF, "clip_qkv": (None,), "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None), "qk_layernorm": (True,), "moe_router_enable_expert_bias": OFF,
    "moe_router_score_function": ("softmax", None), "routed_scaling_factor": (1.0, None),
    "router_num_group": (None, -2, -1, 0, 1),
}  # fmt: skip


def _frequency(said: Keys) -> list[int]:
    layers, frequency = said.whole("num_hidden_layers"), said.get("moe_layer_freq")
    if frequency in (None, []):
        return [1] * layers
    if not isinstance(frequency, list) or len(frequency) != layers or any(entry not in (0, 1) for entry in frequency):
        raise UserError(f"config.json: moe_layer_freq={frequency} must list 0 (dense) or 1 for each of {layers} layers")
    return frequency


def _read(said: Keys) -> dict[str, Any]:
    dense = tuple(index for index, sparse in enumerate(_frequency(said)) if not sparse)
    # The class never divides the gates by their sum, whatever norm_topk_prob says.
    experts = read_experts(said, said.whole("expert_intermediate_size"), renormalise=False)
    return (
        read_llama(said)
        | experts
        | {
            "head_dim": head_size(said, "hidden_size", "num_attention_heads"),
            "rope_theta": plain_theta(said),
            "dense_layers": dense,
            "dense_width": said.whole("dense_intermediate_size") if dense else 0,
            "shared_expert_width": said.whole_or("shared_expert_intermediate_size", 0),
        }
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return (
        write_llama(model)
        | write_experts(model)
        | {
            "expert_intermediate_size": model.width_of_expert,
            "dense_intermediate_size": model.dense_width or 4 * model.hidden_size,
            "shared_expert_intermediate_size": model.shared_expert_width or None,
            "moe_layer_freq": [int(index in model.sparse_layers) for index in range(model.num_layers)],
            "qk_layernorm": True,
            "partial_rotary_factor": 1.0,
            "rope_scaling": None,
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
            "routed_scaling_factor": 1.0,
            "router_num_group": None,
            "router_topk_group": None,
        }
    )


LLADA_MOE = Layout(
    "LLaDAMoEModelLM",
    ("llada", "lladamoe", "llada_moe"),
    {"qk_norm": "head", "router.renormalise": False} | NO_BIAS,
    DEFAULTS,
    _read,
    _write,
    llama_name,
    REFUSED,
    ignored={"norm_topk_prob": OFF},
    code={
        "AutoConfig": f"{REPOSITORY}--configuration_lladamoe.LLaDAConfig",
        "AutoModel": f"{REPOSITORY}--modeling_lladamoe.LLaDAMoEModelLM",
        "AutoModelForCausalLM": f"{REPOSITORY}--modeling_lladamoe.LLaDAMoEModelLM",
    },
    causal_as_shipped=False,
)
