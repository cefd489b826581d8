from dataclasses import replace

import pytest

from core.config import DataConfig, ModelConfig, RunConfig
from core.model.size import count, flops_per_token, training_flops
from core.model.transformer import Denoiser

LLADA_MOE_7B_A1B = ModelConfig(
    vocab_size=157184, hidden_size=2048, num_layers=16, num_heads=16, head_dim=128, num_experts=64, top_k=8,
    expert_width=1024, rope_theta=5e4,
)  # fmt: skip


def test_the_published_model_has_the_published_counts() -> None:
    size = count(LLADA_MOE_7B_A1B)
    assert (size.total, size.active) == (7_356_880_896, 1_397_823_488)


@pytest.mark.parametrize("change", [{}, {"num_experts": 5, "top_k": 3}, {"num_layers": 1}, {"head_dim": 64}])
def test_counts_are_those_of_the_built_model(change: dict) -> None:
    config = replace(ModelConfig(hidden_size=32, expert_width=20), **change)
    assert count(config).total == sum(p.numel() for p in Denoiser(config).parameters())


def test_active_parameters_grow_with_k_and_not_with_e() -> None:
    base = ModelConfig(num_experts=8, top_k=2)
    router = base.num_layers * base.hidden_size
    assert count(replace(base, num_experts=9)).active - count(base).active == router
    expert = 3 * base.hidden_size * base.expert_width * base.num_layers
    assert count(replace(base, top_k=3)).active - count(base).active == expert


def test_flops_by_hand() -> None:
    config = RunConfig(
        model=ModelConfig(
            vocab_size=300, hidden_size=8, num_layers=1, num_heads=1, head_dim=4, num_experts=2, top_k=1, expert_width=4
        ),
        data=DataConfig(sequence_length=10),
    )
    matrices = 4 * 8 * 4 + 2 * 8 + 3 * 8 * 4 + 300 * 8  # attention, router, one expert, head
    norms = 8 + 8 + 8 + 4 + 4
    assert count(config.model).active == matrices + norms
    assert flops_per_token(config) == 6 * (matrices + norms) + 12 * 4 * 10
    assert training_flops(config) == flops_per_token(config) * 16 * 10 * config.trainer.steps
