"""LLaDA's class (GSAI-ML/LLaDA-8B-Base; LLaDAModelLM, which its hub repository holds)."""

from typing import Any

from core.config.model import ModelConfig
from core.errors import UserError
from core.interchange.family import DENSE, NO_BIAS, OFF, Keys, Layout, head_size, kv_heads, no_experts, plain_theta

REPOSITORY = "GSAI-ML/LLaDA-8B-Base"
# As the class takes them, those of a GPT-2; the ids of its tokens are left out.
DEFAULTS = {
    "d_model": 768, "n_heads": 12, "n_kv_heads": None, "n_layers": 12, "mlp_ratio": 4, "mlp_hidden_size": None,
    "activation_type": "swiglu", "block_type": "sequential", "block_group_size": 1, "alibi": False, "rope": False,
    "rope_full_precision": True, "multi_query_attention": None, "attention_layer_norm": False, "input_emb_norm": False,
    "layer_norm_type": "default", "layer_norm_with_affine": True, "rms_norm_eps": 1e-5, "max_sequence_length": 1024,
    "rope_theta": 1e4, "include_qkv_bias": False, "include_bias": False, "bias_for_layer_norm": None,
    "scale_logits": False, "vocab_size": 50257, "embedding_size": 50304, "weight_tying": True, "init_std": 0.02,
}  # fmt: skip
REFUSED = {
    "activation_type": ("silu",), "block_type": ("llama",), "block_group_size": (1,), "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,), "bias_for_layer_norm": OFF, "rope": (True,), "rope_full_precision": (True,),
    "alibi": OFF, "include_bias": OFF, "include_qkv_bias": OFF, "attention_layer_norm": OFF, "scale_logits": OFF,
    "input_emb_norm": OFF, "multi_query_attention": OFF, "quantization_config": (None,),
}  # fmt: skip


def _read(said: Keys) -> dict[str, Any]:
    heads, given = said.whole("n_heads"), said.get("n_kv_heads")
    if said.get("multi_query_attention") is False and given not in (None, heads):
        raise UserError(
            f"config.json: multi_query_attention=False and n_kv_heads={given} differ: set the first to null"
        )
    if said.get("mlp_hidden_size") is None:
        width = said.whole("mlp_ratio") * said.whole("d_model")
    else:
        width = said.whole("mlp_hidden_size")
    return no_experts(width) | {
        "vocab_size": said.whole_or("embedding_size", 0) or said.whole("vocab_size"),
        "hidden_size": said.whole("d_model"),
        "num_layers": said.whole("n_layers"),
        "num_heads": heads,
        "num_kv_heads": kv_heads(said, "n_heads", "n_kv_heads"),
        "head_dim": head_size(said, "d_model", "n_heads"),
        "tied_embeddings": said.flag("weight_tying"),
        "rope_theta": plain_theta(said),
        "max_positions": said.whole("max_sequence_length"),
        "norm_eps": said.number("rms_norm_eps"),
        "init_std": said.number("init_std"),
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "embedding_size": model.vocab_size,
        "d_model": model.hidden_size,
        "n_layers": model.num_layers,
        "n_heads": model.num_heads,
        "n_kv_heads": model.kv_heads,
        "multi_query_attention": None,
        "mlp_hidden_size": model.dense_width,
        "mlp_ratio": 4,  # not looked at beside mlp_hidden_size
        "weight_tying": model.tied_embeddings,
        "rope": True,
        "rope_theta": model.rope_theta,
        "rope_full_precision": True,
        "alibi": False,
        "alibi_bias_max": 8.0,
        "max_sequence_length": model.max_positions,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "rms_norm_eps": model.norm_eps,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "input_emb_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "scale_logits": False,
        "attention_dropout": 0.0,  # the class would drop 0.1 of each in training
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "flash_attention": False,
        "init_device": None,
        "init_fn": "normal",
        "init_std": model.init_std,
        "init_cutoff_factor": None,
        "precision": None,
        "use_cache": False,
    }


def _name(ours: str) -> str:
    whole = {"embed.weight": "wte.weight", "norm.weight": "ln_f.weight", "head.weight": "ff_out.weight"}
    theirs = whole.get(ours, ours.replace("layers.", "blocks."))
    for before, after in (
        ("attention.o_proj", "attn_out"), ("attention.", ""), ("dense.gate_proj", "ff_proj"),
        ("dense.up_proj", "up_proj"), ("dense.down_proj", "ff_out"), ("input_norm", "attn_norm"),
        ("post_attention_norm", "ff_norm"),
    ):  # fmt: skip
        theirs = theirs.replace(before, after)
    return f"model.transformer.{theirs}"


LLADA = Layout(
    "LLaDAModelLM",
    ("llada",),
    {"qk_norm": "none"} | NO_BIAS | DENSE,
    DEFAULTS,
    _read,
    _write,
    _name,
    REFUSED,
    code={
        "AutoConfig": f"{REPOSITORY}--configuration_llada.LLaDAConfig",
        "AutoModel": f"{REPOSITORY}--modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": f"{REPOSITORY}--modeling_llada.LLaDAModelLM",
    },
    causal_as_shipped=False,
)
