from dataclasses import replace

import pytest

from core.config.data import DataConfig
from core.config.model import ModelConfig
from core.config.presets import preset
from core.config.run import RunConfig
from core.model.flops import count, flops_per_token, training_flops


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llada_moe_7b_a1b", 7_356_880_896, 1_397_823_488),
        ("llada_8b", 8_015_581_184, 7_497_584_640),  # 8.02B in the paper's Table 5
        ("qwen2_5_3b", 3_085_938_688, 3_085_938_688),  # as the released weights count
        ("olmoe_1b_7b", 6_919_161_856, 1_178_994_688),  # 6.92B in the paper; 1.28B active with the embedding
    ],
)
def test_published_models_have_their_published_counts(name: str, total: int, active: int) -> None:
    size = count(preset(name).model)
    assert (size.total, size.active) == (total, active)


@pytest.mark.parametrize(
    ("name", "nominal"),
    [("proxy_1m", 1e6), ("proxy_3m", 3e6), ("proxy_10m", 1e7), ("proxy_30m", 3e7), ("proxy_100m", 1e8),
     ("proxy_300m", 3e8), ("proxy_1b", 1e9)],
)  # fmt: skip
def test_proxies_are_as_large_as_they_say(name: str, nominal: float) -> None:
    assert count(preset(name).model).total == pytest.approx(nominal, rel=0.1)


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
