"""How Hugging Face checkpoints say what this project's config says: config.json keys and weight names, both ways."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.config import ModelConfig, RouterConfig, get_field
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
SPARSE = {"dense_layers": (), "shared_expert_width": 0}
BIDIRECTIONAL = "bidirectional"  # our own key in config.json, of classes that are causal as shipped


class Piece(NamedTuple):
    """One tensor of a checkpoint: `theirs` is `ours`, or expert number `expert` of it."""

    ours: str
    expert: int | None
    theirs: str


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints.

    fixed: the config fields that the family's class leaves no choice in. refused: config.json keys that ask for what
    isn't built here, with the values that don't.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    rename: Callable[[str], str]
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    causal_as_shipped: bool = True


def layout_for(model: ModelConfig, name: str | None = None) -> str:
    """The layout that can say the model. Raises UserError that names the field none can (or the named one can't)."""
    if name is not None and name not in LAYOUTS:
        raise UserError(f"unknown layout '{name}': use one of {', '.join(LAYOUTS)}")
    misfits = {key: _misfits(model, layout) for key, layout in LAYOUTS.items() if name in (None, key)}
    fitting = [key for key, fields in misfits.items() if not fields]
    if fitting:
        # A class that says the direction itself comes before one that needs our own key for it.
        return min(fitting, key=lambda key: LAYOUTS[key].causal_as_shipped != model.causal)
    nearest = min(misfits, key=lambda key: len(misfits[key]))
    raise UserError(f"no Hugging Face class can say this model; the nearest, {nearest}, needs {misfits[nearest][0]}")


def _misfits(model: ModelConfig, layout: Layout) -> list[str]:
    found = [
        f"model.{key}={value}, not {get_field(model, key)}"
        for key, value in (COMMON | dict(layout.fixed)).items()
        if get_field(model, key) != value
    ]
    if "num_experts" not in layout.fixed and not model.num_experts:
        found.append("a mixture of experts (model.num_experts >= 1)")
    if model.num_heads * model.head_dim != model.hidden_size:
        found.append(f"model.head_dim={model.hidden_size / model.num_heads:g}: hidden_size over num_heads")
    if model.causal and not layout.causal_as_shipped:
        found.append("model.causal=False, not True")
    return found


def config_to_hf(model: ModelConfig, name: str | None = None) -> dict[str, Any]:
    """The model as a config.json of the layout (the fitting one when left out). Raises UserError as `layout_for` does."""
    layout = LAYOUTS[layout_for(model, name)]
    said = {"architectures": [layout.architecture], "model_type": layout.model_type} | layout.write(model)
    if layout.causal_as_shipped and not model.causal:
        said[BIDIRECTIONAL] = True  # the class would need a full attention mask
    tokens = {"eos_token_id": model.eos_id, "pad_token_id": model.pad_id, "mask_token_id": model.mask_id}
    return said | {key: value for key, value in tokens.items() if value is not None}


def config_from_hf(said: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json describes.

    Raises UserError for an unknown architecture, a missing key and an option that isn't built here, naming the key.
    """
    layout = LAYOUTS[layout_of(said)]
    for key, allowed in layout.refused.items():
        if said.get(key, allowed[0]) not in allowed:
            raise UserError(f"config.json: {key}={said[key]} isn't supported; it would have to be {allowed[0]}")
    try:
        fields = layout.read(said)
    except KeyError as error:
        raise UserError(f"config.json lacks the key {error}") from None
    causal = layout.causal_as_shipped and not said.get(BIDIRECTIONAL, False)
    eos = said.get("eos_token_id")
    tokens = {
        "mask_id": said.get("mask_token_id"),
        "eos_id": eos[0] if isinstance(eos, list) else eos,
        "pad_id": said.get("pad_token_id"),
    }
    fixed = {key: value for key, value in layout.fixed.items() if "." not in key}
    # As shipped, LLaDA-MoE's config class defaults the mask to its eos; the released weights mask with 156895.
    if tokens["mask_id"] is not None and tokens["mask_id"] in (tokens["eos_id"], tokens["pad_id"]):
        raise UserError(
            f"config.json: mask_token_id={tokens['mask_id']} is also eos or pad; set it to the mask's own id"
        )
    return ModelConfig(**(fixed | {"causal": causal} | tokens | fields))


def layout_of(said: Mapping[str, Any]) -> str:
    """The layout of a config.json, by its architecture. Raises UserError for one that isn't known."""
    architecture = (said.get("architectures") or [""])[0]
    for name, layout in LAYOUTS.items():
        if architecture.lower() in (layout.architecture.lower(), layout.architecture.lower().removesuffix("lm")):
            return name
    known = ", ".join(layout.architecture for layout in LAYOUTS.values())
    raise UserError(f"config.json: architecture '{architecture}' is unknown; known are {known}")


def pieces(model: ModelConfig, names: list[str], layout: str) -> Iterator[Piece]:
    """Every tensor of the checkpoint for this project's state-dict names, in their order."""
    rename = LAYOUTS[layout].rename
    for ours in names:
        match = re.fullmatch(r"(layers\.\d+\.)moe\.experts\.(gate|up|down)_E[DW]{2}", ours)
        if match is None:
            yield Piece(ours, None, rename(ours))
            continue
        for expert in range(model.experts):
            yield Piece(ours, expert, f"model.{match[1]}mlp.experts.{expert}.{match[2]}_proj.weight")


def _llama_name(ours: str) -> str:
    parts = {
        "embed.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head.", "layers.": "model.layers.",
    }  # fmt: skip
    prefix = next(part for part in parts if ours.startswith(part))
    theirs = parts[prefix] + ours.removeprefix(prefix)
    for before, after in (
        ("moe.router.weight_ED", "mlp.gate.weight"), ("moe.shared_expert.", "mlp.shared_expert."), (".dense.", ".mlp."),
        (".attention.", ".self_attn."), ("input_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
    ):  # fmt: skip
        theirs = theirs.replace(before, after)
    return theirs


def _llada_name(ours: str) -> str:
    whole = {"embed.weight": "wte.weight", "norm.weight": "ln_f.weight", "head.weight": "ff_out.weight"}
    theirs = whole.get(ours, ours.replace("layers.", "blocks."))
    for before, after in (
        ("attention.o_proj", "attn_out"), ("attention.", ""), ("dense.gate_proj", "ff_proj"),
        ("dense.up_proj", "up_proj"), ("dense.down_proj", "ff_out"), ("input_norm", "attn_norm"),
        ("post_attention_norm", "ff_norm"),
    ):  # fmt: skip
        theirs = theirs.replace(before, after)
    return f"model.transformer.{theirs}"


def _theta(said: Mapping[str, Any]) -> float:
    scaling = said.get("rope_parameters") or said.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise UserError(f"config.json: rope scaling '{kind}' isn't supported; it would have to be 'default' or absent")
    return float(said["rope_theta"] if "rope_theta" in said else scaling.get("rope_theta", 1e4))


def _read_llama(said: Mapping[str, Any]) -> dict[str, Any]:
    heads = said["num_attention_heads"]
    kv_heads = said.get("num_key_value_heads")
    return {
        "vocab_size": said["vocab_size"],
        "hidden_size": said["hidden_size"],
        "num_layers": said["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": None if kv_heads in (None, heads) else kv_heads,
        "head_dim": said.get("head_dim") or said["hidden_size"] // heads,
        "tied_embeddings": bool(said.get("tie_word_embeddings", False)),
        "rope_theta": _theta(said),
        "max_positions": said["max_position_embeddings"],
        "norm_eps": said["rms_norm_eps"],
        "init_std": said.get("initializer_range", 0.02),
    }


def _write_llama(model: ModelConfig) -> dict[str, Any]:
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
    }


def _no_experts(width: int) -> dict[str, Any]:
    return {"num_experts": 0, "top_k": 0, "expert_width": 0, "dense_width": width}


def _experts(said: Mapping[str, Any], width: int) -> dict[str, Any]:
    router = RouterConfig(renormalise=bool(said.get("norm_topk_prob") or False))
    return {
        "num_experts": said["num_experts"], "top_k": said["num_experts_per_tok"], "expert_width": width, "router": router,
    }  # fmt: skip


def _said_experts(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": model.router.renormalise,
    }


def _read_llada_moe(said: Mapping[str, Any]) -> dict[str, Any]:
    frequency = said.get("moe_layer_freq") or [1] * said["num_hidden_layers"]
    dense = tuple(i for i, sparse in enumerate(frequency) if not sparse)
    return (
        _read_llama(said)
        | _experts(said, said["expert_intermediate_size"])
        | {
            "dense_layers": dense,
            "dense_width": said["dense_intermediate_size"] if dense else 0,
            "shared_expert_width": said.get("shared_expert_intermediate_size") or 0,
        }
    )


def _write_llada_moe(model: ModelConfig) -> dict[str, Any]:
    return (
        _write_llama(model)
        | _said_experts(model)
        | {
            "expert_intermediate_size": model.width_of_expert,
            "dense_intermediate_size": model.dense_width or 4 * model.hidden_size,
            "shared_expert_intermediate_size": model.shared_expert_width or None,
            "moe_layer_freq": [int(i in model.sparse_layers) for i in range(model.num_layers)],
            "qk_layernorm": True,
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
        }
    )


def _read_llada(said: Mapping[str, Any]) -> dict[str, Any]:
    heads = said["n_heads"]
    kv_heads = said.get("n_kv_heads")
    return _no_experts(said["mlp_hidden_size"]) | {
        "vocab_size": said.get("embedding_size") or said["vocab_size"],
        "hidden_size": said["d_model"],
        "num_layers": said["n_layers"],
        "num_heads": heads,
        "num_kv_heads": None if kv_heads in (None, heads) else kv_heads,
        "head_dim": said["d_model"] // heads,
        "tied_embeddings": bool(said.get("weight_tying", False)),
        "rope_theta": float(said["rope_theta"]),
        "max_positions": said["max_sequence_length"],
        "norm_eps": said["rms_norm_eps"],
        "init_std": said.get("init_std", 0.02),
    }


def _write_llada(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "embedding_size": model.vocab_size,
        "d_model": model.hidden_size,
        "n_layers": model.num_layers,
        "n_heads": model.num_heads,
        "n_kv_heads": model.kv_heads,
        "mlp_hidden_size": model.dense_width,
        "weight_tying": model.tied_embeddings,
        "rope_theta": model.rope_theta,
        "max_sequence_length": model.max_positions,
        "rms_norm_eps": model.norm_eps,
        "init_std": model.init_std,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
    }


LLAMA_REFUSED = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None), "clip_qkv": (None,),
    "use_sliding_window": (False, None), "quantization_config": (None,),
}  # fmt: skip
NO_BIAS = {"qkv_bias": False}

LAYOUTS: dict[str, Layout] = {
    "llada_moe": Layout(  # inclusionAI/LLaDA-MoE-7B-A1B-Base
        "LLaDAMoEModelLM", "llada", {"qk_norm": "head"} | NO_BIAS, _read_llada_moe, _write_llada_moe, _llama_name,
        LLAMA_REFUSED
        | {"moe_router_score_function": ("softmax", None), "moe_router_enable_expert_bias": (False, None),
           "partial_rotary_factor": (1.0, 1, None), "routed_scaling_factor": (1.0, 1, None),
           "qk_layernorm": (True,), "router_num_group": (None,)},
        causal_as_shipped=False,
    ),
    "llada": Layout(  # GSAI-ML/LLaDA-8B-Base
        "LLaDAModelLM", "llada", {"qk_norm": "none"} | NO_BIAS | DENSE, _read_llada, _write_llada, _llada_name,
        {"activation_type": ("silu",), "block_type": ("llama",), "layer_norm_type": ("rms",), "rope": (True,),
         "alibi": (False, None), "include_bias": (False, None), "include_qkv_bias": (False, None),
         "attention_layer_norm": (False, None), "scale_logits": (False, None), "input_emb_norm": (False, None)},
        causal_as_shipped=False,
    ),
    "olmoe": Layout(  # allenai/OLMoE-1B-7B-0924
        "OlmoeForCausalLM", "olmoe", {"qk_norm": "projection"} | NO_BIAS | SPARSE,
        lambda said: _read_llama(said) | _experts(said, said["intermediate_size"]),
        lambda model: _write_llama(model) | _said_experts(model) | {"intermediate_size": model.width_of_expert},
        _llama_name, LLAMA_REFUSED,
    ),
    "qwen2": Layout(  # Qwen/Qwen2.5-3B
        "Qwen2ForCausalLM", "qwen2", {"qk_norm": "none", "qkv_bias": True} | DENSE,
        lambda said: _read_llama(said) | _no_experts(said["intermediate_size"]),
        lambda model: _write_llama(model) | {"intermediate_size": model.dense_width},
        _llama_name, LLAMA_REFUSED | {"attention_bias": (True, None)},
    ),
    "llama": Layout(
        "LlamaForCausalLM", "llama", {"qk_norm": "none"} | NO_BIAS | DENSE,
        lambda said: _read_llama(said) | _no_experts(said["intermediate_size"]),
        lambda model: _write_llama(model) | {"intermediate_size": model.dense_width},
        _llama_name, LLAMA_REFUSED,
    ),
}  # fmt: skip
