"""The classes of LLaDA-MoE and LLaDA, whose code ships in no package, written a second time from what they publish.

DEFAULTS are what their config classes take for a key that is left out, whole. The modules have the published names of
parameters and buffers, so that `load_state_dict` is as strict as a real load, and read nothing but the config.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LLADA_MOE_DEFAULTS: dict[str, Any] = {
    "vocab_size": -1, "hidden_size": -1, "dense_intermediate_size": -1, "expert_intermediate_size": -1,
    "shared_expert_intermediate_size": -1, "num_hidden_layers": -1, "num_attention_heads": -1,
    "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 4096, "initializer_range": 0.02,
    "rms_norm_eps": 1e-5, "use_cache": False, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 50279,
    "tie_word_embeddings": False, "rope_theta": -1, "partial_rotary_factor": -1, "rope_scaling": None,
    "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "num_experts_per_tok": -1, "num_experts": -1,
    "output_router_logits": False, "router_aux_loss_coef": 0.01, "norm_topk_prob": None, "qk_layernorm": None,
    "moe_layer_freq": [], "moe_router_enable_expert_bias": None, "moe_router_score_function": None,
    "routed_scaling_factor": 1, "router_num_group": -2, "router_topk_group": -2,
}  # fmt: skip
LLADA_DEFAULTS: dict[str, Any] = {
    "d_model": 768, "n_heads": 12, "n_kv_heads": None, "n_layers": 12, "mlp_ratio": 4, "mlp_hidden_size": None,
    "activation_type": "swiglu", "block_type": "sequential", "block_group_size": 1, "alibi": False,
    "alibi_bias_max": 8.0, "rope": False, "rope_full_precision": True, "flash_attention": False,
    "attention_dropout": 0.1, "multi_query_attention": None, "attention_layer_norm": False, "residual_dropout": 0.1,
    "embedding_dropout": 0.1, "input_emb_norm": False, "layer_norm_type": "default", "layer_norm_with_affine": True,
    "rms_norm_eps": 1e-5, "attention_layer_norm_with_affine": True, "max_sequence_length": 1024, "rope_theta": 1e4,
    "include_qkv_bias": False, "include_bias": False, "bias_for_layer_norm": None, "scale_logits": False,
    "vocab_size": 50257, "embedding_size": 50304, "weight_tying": True, "eos_token_id": 50256, "pad_token_id": 50256,
    "mask_token_id": 50256, "init_device": None, "init_fn": "normal", "init_std": 0.02, "init_cutoff_factor": None,
    "precision": None, "use_cache": False,
}  # fmt: skip


class Config:
    """A config.json over a class's defaults, as attributes."""

    def __init__(self, defaults: dict[str, Any], said: dict[str, Any]) -> None:
        self.__dict__.update(defaults | said)


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))


def turned(x_BHLP: Tensor, rotary: int, theta: float) -> Tensor:
    """RoPE over the first `rotary` features of each head, in halves."""
    angle = torch.arange(x_BHLP.shape[2])[:, None] * theta ** (-torch.arange(0, rotary, 2) / rotary)[None]
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    part = x_BHLP[..., :rotary]
    half = torch.cat([-part[..., rotary // 2 :], part[..., : rotary // 2]], -1)
    return torch.cat([part * cos + half * sin, x_BHLP[..., rotary:]], -1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over all positions; keys and values repeated where they have fewer heads. (B, H, L, P)."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    return ((q @ k.transpose(2, 3)) / math.sqrt(q.shape[-1])).softmax(-1) @ v


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c, self.size = c, c.hidden_size // c.num_attention_heads
        kv_heads = c.num_attention_heads if c.num_key_value_heads is None else c.num_key_value_heads
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, kv_heads * self.size, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, kv_heads * self.size, bias=c.attention_bias)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        if c.qk_layernorm:
            self.q_norm, self.k_norm = Norm(self.size, c.rms_norm_eps), Norm(self.size, c.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)) for f in (self.q_proj, self.k_proj, self.v_proj))
        if self.c.qk_layernorm:
            q, k = self.q_norm(q), self.k_norm(k)
        rotary = int(self.size * self.c.partial_rotary_factor)
        q, k = (turned(part.transpose(1, 2), rotary, self.c.rope_theta) for part in (q, k))
        out = attended(q, k, v.transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.o_proj(F.dropout(out, self.c.attention_dropout, self.training))


class SwiGLU(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(nn.Module):
    """Gates are the chosen probabilities as they are, whatever norm_topk_prob says."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.top_k = c.num_experts_per_tok
        self.gate = nn.Linear(c.hidden_size, c.num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(c.hidden_size, c.expert_intermediate_size) for _ in range(c.num_experts))
        if c.moe_router_enable_expert_bias:
            self.register_buffer("expert_bias", torch.zeros(c.num_experts))

    def forward(self, x_BLD: Tensor) -> Tensor:
        gates, chosen = self.gate(x_BLD).softmax(-1).topk(self.top_k, -1)
        out = torch.zeros_like(x_BLD)
        for index, expert in enumerate(self.experts):
            out = out + (gates * (chosen == index)).sum(-1, keepdim=True) * expert(x_BLD)
        return out


class LLaDAMoELayer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        sparse = c.moe_layer_freq[index] != 0
        self.self_attn = Attention(c)
        self.mlp = Mixture(c) if sparse else SwiGLU(c.hidden_size, c.dense_intermediate_size)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        if c.shared_expert_intermediate_size is not None and sparse:
            self.shared_expert = SwiGLU(c.hidden_size, c.shared_expert_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        normed = self.post_attention_layernorm(x)
        shared = self.shared_expert(normed) if hasattr(self, "shared_expert") else 0.0
        return x + self.mlp(normed) + shared


class LLaDAMoE(nn.Module):
    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__()
        c = Config(LLADA_MOE_DEFAULTS, said)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size, c.pad_token_id)
        self.model.layers = nn.ModuleList(LLaDAMoELayer(c, index) for index in range(c.num_hidden_layers))
        self.model.norm = Norm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x = self.model.embed_tokens(tokens_BL)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


class LLaDABlock(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        assert (c.block_type, c.layer_norm_type, c.activation_type) == ("llama", "rms", "silu")
        self.c, self.size = c, c.d_model // c.n_heads
        kv_heads = c.n_heads if c.n_kv_heads is None else c.n_kv_heads
        width = c.mlp_ratio * c.d_model if c.mlp_hidden_size is None else c.mlp_hidden_size
        bias = c.include_bias or c.include_qkv_bias
        self.attn_norm, self.ff_norm = Norm(c.d_model, c.rms_norm_eps), Norm(c.d_model, c.rms_norm_eps)
        self.q_proj = nn.Linear(c.d_model, c.d_model, bias=bias)
        self.k_proj = nn.Linear(c.d_model, kv_heads * self.size, bias=bias)
        self.v_proj = nn.Linear(c.d_model, kv_heads * self.size, bias=bias)
        self.attn_out = nn.Linear(c.d_model, c.d_model, bias=c.include_bias)
        self.ff_proj = nn.Linear(c.d_model, width, bias=c.include_bias)
        self.up_proj = nn.Linear(c.d_model, width, bias=c.include_bias)
        self.ff_out = nn.Linear(width, c.d_model, bias=c.include_bias)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        q, k, v = (
            f(normed).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.c.rope:
            q, k = (turned(part, self.size, self.c.rope_theta) for part in (q, k))
        out = F.dropout(attended(q, k, v), self.c.attention_dropout, self.training).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.attn_out(out), self.c.residual_dropout, self.training)
        normed = self.ff_norm(x)
        mixed = self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))
        return x + F.dropout(mixed, self.c.residual_dropout, self.training)


class LLaDA(nn.Module):
    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__()
        self.c = c = Config(LLADA_DEFAULTS, said)
        self.model = nn.Module()
        self.model.transformer = parts = nn.Module()
        parts.wte = nn.Embedding(c.embedding_size or c.vocab_size, c.d_model)
        parts.blocks = nn.ModuleList(LLaDABlock(c) for _ in range(c.n_layers))
        parts.ln_f = Norm(c.d_model, c.rms_norm_eps)
        if not c.weight_tying:
            parts.ff_out = nn.Linear(c.d_model, c.embedding_size or c.vocab_size, bias=c.include_bias)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        parts = self.model.transformer
        x = F.dropout(parts.wte(tokens_BL), self.c.embedding_dropout, self.training)
        for block in parts.blocks:
            x = block(x)
        x = parts.ln_f(x)
        return F.linear(x, parts.wte.weight) if self.c.weight_tying else parts.ff_out(x)
