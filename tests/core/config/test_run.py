import dataclasses

import pytest
import yaml

from core.config.loading import build, flatten
from core.config.model import ModelConfig
from core.config.objective import ObjectiveConfig
from core.config.run import RunConfig, config_hash, known_keys, to_dict, to_yaml
from core.errors import UserError
from core.model.flops import count


def test_hash_changes_with_every_key_and_only_then() -> None:
    base = RunConfig()
    assert config_hash(base) == config_hash(build(to_dict(base)))
    assert config_hash(base) != config_hash(dataclasses.replace(base, seed=1))
    assert config_hash(base, with_seed=False) == config_hash(dataclasses.replace(base, seed=1), with_seed=False)
    other = dataclasses.replace(base, model=ModelConfig(rope_theta=5e4))
    assert config_hash(base, with_seed=False) != config_hash(other, with_seed=False)


def test_known_keys_are_all_leaves() -> None:
    assert [key for key, _ in flatten(to_dict(RunConfig()))] == [
        key for key in known_keys() if key != "plugins"
    ]  # left out where empty


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]
    assert yaml.safe_load(to_yaml(RunConfig()))["model"]["router"]["kind"] == "topk"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_experts": 0}, "top_k=2 means nothing in a dense model"),
        ({"num_experts": 0, "top_k": 0, "expert_width": 0}, "dense_width must be at least 1 in a dense model"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide model.num_heads=4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 must divide"),
        ({"granularity": 3}, "expert_width=64 must be a multiple of 12 at model.granularity=3"),
        ({"dense_layers": (4,), "dense_width": 8}, r"dense_layers=.* must list different layers of 0..3"),
        ({"dense_layers": (1, 1), "dense_width": 8}, r"dense_layers=.* must list different layers of 0..3"),
        ({"dense_layers": (0, 1, 2, 3), "dense_width": 8}, "dense_layers lists every layer"),
        ({"dense_layers": (1,)}, "dense_width=0 must be positive"),
        ({"dense_width": 8}, "dense_width=8 must be positive when model.dense_layers lists a layer, and 0 when not"),
        ({"mask_id": 259}, "mask_id=259 must lie in 0..258"),
        ({"eos_id": 256}, "mask_id=256 is also model.eos_id"),
        ({"causal": True, "shifted": True}, "shifted=true is of a network that sees both sides"),
        ({"shared_expert_width": -1}, "shared_expert_width must not be negative"),
        ({"hidden_size": 126}, "hidden_size=126 must be a multiple of 4"),
    ],
)
def test_inconsistent_models_are_refused(change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=f"model.{expected}"):
        ModelConfig(**change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"objective": ObjectiveConfig(kind="autoregressive")}, "needs model.causal=true"),
        ({"model": ModelConfig(causal=True)}, "objective.kind=masked_diffusion needs model.causal=false"),
        ({"model": ModelConfig(mask_id=None)}, "set model.mask_id"),
        ({"model": ModelConfig(max_positions=64)}, "data.sequence_length=128 exceeds model.max_positions=64"),
    ],
)
def test_an_objective_needs_a_model_that_fits_it(change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        RunConfig(**change)


def test_granularity_splits_experts_and_keeps_what_they_cost() -> None:
    fine = ModelConfig(granularity=4)
    assert (fine.experts, fine.experts_per_token, fine.width_of_expert) == (32, 8, 16)
    router = 24 * fine.hidden_size * fine.num_layers
    assert count(fine).total == count(ModelConfig()).total + router
    assert count(fine).active == count(ModelConfig()).active + router
