"""LLaDA-MoE written a second time, slowly and from its published description alone, as a judge of the real one.

Per layer: RMSNorm; q, k, v without biases; RMSNorm over each head's q and k; RoPE on halves; bidirectional softmax
attention; RMSNorm; router = softmax in fp32 over all experts, top k as they are (no renormalisation); SwiGLU experts.
Weights by their Hugging Face names.
"""

import math

import torch


def rms_norm(x, weight, eps=1e-5):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rope(x, position, theta):
    """x: one head's vector at one position. Feature i turns with feature i + half by the angle p theta^(-2 i / size)."""
    half = len(x) // 2
    angles = [position * theta ** (-2 * i / len(x)) for i in range(half)]
    first = [x[i] * math.cos(angles[i]) - x[i + half] * math.sin(angles[i]) for i in range(half)]
    second = [x[i + half] * math.cos(angles[i]) + x[i] * math.sin(angles[i]) for i in range(half)]
    return torch.stack(first + second)


def attention(weights, prefix, x, heads, theta):
    length, size = len(x), x.shape[1] // heads
    q, k, v = (x @ weights[f"{prefix}{n}_proj.weight"].T for n in "qkv")
    outputs = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        qs = [rope(rms_norm(q[i, part], weights[f"{prefix}q_norm.weight"]), i, theta) for i in range(length)]
        ks = [rope(rms_norm(k[i, part], weights[f"{prefix}k_norm.weight"]), i, theta) for i in range(length)]
        scores = torch.stack([torch.stack([a @ b for b in ks]) for a in qs]) / math.sqrt(size)
        outputs.append(torch.softmax(scores, -1) @ v[:, part])
    return torch.cat(outputs, -1) @ weights[f"{prefix}o_proj.weight"].T


def mixture(weights, prefix, x, top_k):
    rows = []
    for token in x:
        probabilities = torch.softmax((weights[f"{prefix}gate.weight"] @ token).float(), -1)
        chosen = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[:top_k]
        row = torch.zeros_like(token)
        for e in chosen:
            gate, up, down = (weights[f"{prefix}experts.{e}.{n}_proj.weight"] for n in ("gate", "up", "down"))
            hidden = gate @ token
            row = row + probabilities[e] * (down @ (hidden * torch.sigmoid(hidden) * (up @ token)))
        rows.append(row)
    return torch.stack(rows)


def logits(weights, tokens, *, layers, heads, top_k, theta):
    """tokens: a list of ids. Returns (length, vocabulary)."""
    x = torch.stack([weights["model.embed_tokens.weight"][t] for t in tokens])
    for i in range(layers):
        layer = f"model.layers.{i}."
        normed = rms_norm(x, weights[f"{layer}input_layernorm.weight"])
        x = x + attention(weights, f"{layer}self_attn.", normed, heads, theta)
        x = x + mixture(weights, f"{layer}mlp.", rms_norm(x, weights[f"{layer}post_attention_layernorm.weight"]), top_k)
    return rms_norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
