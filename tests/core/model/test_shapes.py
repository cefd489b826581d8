import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from core.capacity.states import sizes
from core.config.model import ROUTERS, ModelConfig, RouterConfig
from core.config.presets import PRESETS
from core.model.flops import count
from core.model.shapes import shapes, weights
from core.model.transformer import Denoiser

BASE = ModelConfig(hidden_size=32, num_layers=3, num_heads=4, head_dim=12, num_experts=6, top_k=2, expert_width=24)
DENSE = replace(BASE, num_experts=0, top_k=0, expert_width=0, dense_width=20)
VARIANTS = {
    "granularity": replace(BASE, granularity=3),
    "shared expert": replace(BASE, shared_expert_width=16),
    "dense layers": replace(BASE, dense_layers=(0, 2), dense_width=40),
    "dense": DENSE,
    "tied": replace(BASE, tied_embeddings=True),
    "dense, tied": replace(DENSE, tied_embeddings=True),
    "biases": replace(BASE, qkv_bias=True),
    "grouped queries": replace(BASE, num_kv_heads=2, qkv_bias=True),
    "norm per projection": replace(BASE, qk_norm="projection", num_kv_heads=2),
    "no norm": replace(BASE, qk_norm="none"),
    "causal": replace(BASE, causal=True),
    "shifted": replace(BASE, shifted=True),
    "blocks": replace(BASE, block_length=8),
    "features and bins": replace(BASE, router=RouterConfig(kind="film", time_features=10, time_bins=3)),
    "all of it": replace(
        BASE, granularity=2, shared_expert_width=8, dense_layers=(1,), dense_width=12, tied_embeddings=True,
        qkv_bias=True, num_kv_heads=1, qk_norm="projection", router=RouterConfig(kind="unmodulated"),
    ),
}  # fmt: skip
KINDS = {kind: replace(BASE, granularity=2, router=RouterConfig(kind=kind)) for kind in ROUTERS}
MODELS = {name: config.model for name, config in PRESETS.items()} | VARIANTS | KINDS


def built(model: ModelConfig) -> Denoiser:
    with torch.device("meta"):
        return Denoiser(model)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_weights_are_those_of_the_network_in_its_order(model: ModelConfig) -> None:
    network = built(model)
    assert list(shapes(model).items()) == [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    parameters = {
        name: (tuple(value.shape), hasattr(value, "per_sequence")) for name, value in network.named_parameters()
    }
    learned = {weight.name: (weight.shape, weight.per_sequence) for weight in weights(model) if not weight.buffer}
    assert list(learned.items()) == list(parameters.items())
    assert [weight.name for weight in weights(model) if weight.buffer] == [name for name, _ in network.named_buffers()]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_counts_are_those_of_the_network(model: ModelConfig) -> None:
    parameters = dict(built(model).named_parameters())
    sizes_of = {name: value.numel() for name, value in parameters.items()}
    total = sum(sizes_of.values())
    routed = sum(size for name, size in sizes_of.items() if ".experts." in name)
    idle = routed * (model.experts - model.experts_met) // max(1, model.experts)
    timed = sum(sizes_of[name] for name, value in parameters.items() if hasattr(value, "per_sequence"))
    looked_up = 0 if model.tied_embeddings else sizes_of["embed.weight"]
    assert vars(count(model)) == {"total": total, "active": total - idle - looked_up - timed}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_sizes_of_states_are_those_of_the_network(model: ModelConfig) -> None:
    parameters = dict(built(model).named_parameters())
    shared = [value for name, value in parameters.items() if ".experts." not in name]
    assert sizes(model) == (
        tuple(value.numel() for value in shared if value.ndim > 1),
        tuple(value.numel() for value in shared if value.ndim <= 1),
        tuple(value.numel() for name, value in parameters.items() if ".experts." in name),
    )


def test_counting_thousands_of_models_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "from core.config.model import ModelConfig\n"
        "from core.model.flops import count\n"
        "found = {count(ModelConfig(hidden_size=4 * n)).total for n in range(8, 2008)}\n"
        "assert len(found) == 2000 and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
