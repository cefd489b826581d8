import dataclasses

import pytest
import yaml

from core.config import ModelConfig, RunConfig, config_hash, known_keys, to_dict, to_yaml
from core.settings import build


def test_hash_changes_with_every_key_and_only_then() -> None:
    base = RunConfig()
    assert config_hash(base) == config_hash(build(to_dict(base)))
    assert config_hash(base) != config_hash(dataclasses.replace(base, seed=1))
    assert config_hash(base, with_seed=False) == config_hash(dataclasses.replace(base, seed=1), with_seed=False)
    other = dataclasses.replace(base, model=ModelConfig(rope_theta=5e4))
    assert config_hash(base, with_seed=False) != config_hash(other, with_seed=False)


def test_known_keys_are_all_leaves() -> None:
    nested = to_dict(RunConfig())
    leaves = [key for key in known_keys() if not isinstance(_at(nested, key), dict)]
    assert len(leaves) == len(known_keys()) > 20


def _at(nested: dict, key: str) -> object:
    for name in key.split("."):
        nested = nested[name]
    return nested


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]
    assert yaml.safe_load(to_yaml(RunConfig()))["model"]["router"]["kind"] == "topk"
