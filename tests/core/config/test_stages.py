"""Stages as they are declared: what each inherits, what is refused, and LLaDA-MoE's five."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from core.config.presets import preset
from core.config.run import RunConfig
from core.config.stages import Stage, is_staged, llada_moe_stages, load_stages, make_stages, to_yaml
from core.errors import UserError

TWO = {
    "preset": "tiny",
    "seed": 3,
    "trainer": {"steps": 50, "initial_weights": "w.safetensors"},
    "optimizer.learning_rate": 1e-3,
    "stages": [
        {"name": "first", "settings": {"data.corpus": "markov"}},
        {"name": "second", "settings": {"trainer": {"steps": 7}, "model.rope_theta": 5e4}, "select": "last"},
    ],
}


def test_stages_share_settings_and_have_their_own() -> None:
    first, second = make_stages(TWO)
    assert (first.name, first.config.data.corpus, first.config.trainer.steps) == ("first", "markov", 50)
    own = second.config
    assert (own.data.corpus, own.trainer.steps, own.model.rope_theta) == ("stdlib", 7, 5e4)
    assert first.config.model.hidden_size == second.config.model.hidden_size == 96  # of the preset
    assert first.config.optimizer.learning_rate == second.config.optimizer.learning_rate == 1e-3
    assert first.config.trainer.keep_best == "val/nelbo" and second.config.trainer.keep_best is None
    assert Stage("a", RunConfig(), select="load/max_vio").config.trainer.keep_best == "load/max_vio"
    assert first.config.trainer.initial_weights == "w.safetensors" and second.config.trainer.initial_weights is None
    assert first.config.seed == 3 != second.config.seed  # else both would meet a text in one order under the same masks
    assert make_stages(TWO)[1].config.seed == second.config.seed
    assert make_stages(TWO, {"seed": 4})[1].config.seed != second.config.seed


def test_settings_of_the_command_line_hold_for_every_stage() -> None:
    assert [stage.config.trainer.steps for stage in make_stages(TWO, {"trainer.steps": 2})] == [2, 2]


def test_identity_is_of_the_stage_and_not_of_where_its_weights_lie() -> None:
    first, second = make_stages(TWO)
    moved = replace(first, config=replace(first.config, trainer=replace(first.config.trainer, initial_weights="x")))
    assert moved.identity == first.identity != second.identity
    assert replace(first, name="other").identity != first.identity != replace(first, select="last").identity


def test_yaml_reads_back(tmp_path: Path) -> None:
    for stages in (make_stages(TWO), llada_moe_stages({}, sft_steps=20, base=preset("tiny"))):
        (tmp_path / "s.yaml").write_text(to_yaml(stages))
        assert is_staged(tmp_path / "s.yaml") and load_stages(tmp_path / "s.yaml") == stages
    assert not is_staged(tmp_path / "none.yaml")
    content = yaml.safe_load(to_yaml(make_stages(TWO)))
    assert set(content["stages"][1]["settings"]) == {"seed", "data.corpus", "trainer.steps", "model.rope_theta"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"stages": []}, "stages: must be a list"),
     ({"stages": [{"settings": {}}]}, "stages: each needs a name"),
     ({"stages": [{"name": "a/b"}]}, "stage 'a/b': a name needs letters"),
     ({"stages": [{"name": "a"}, {"name": "a"}]}, "stage a is there twice"),
     ({"stages": [{"name": "a", "setings": {}}]}, "stage a: unknown key 'setings': did you mean settings"),
     ({"stages": [{"name": "a", "trainer.steps": 3}]}, "stage a: unknown key 'trainer.steps': config keys go below"),
     ({"stages": [{"name": "a", "settings": {"trainer.stps": 3}}]}, "stage a: unknown config key 'trainer.stps'"),
     ({"stages": [{"name": "a", "settings": {"data.sequence_length": 9999}}]}, "stage a: .* exceeds model.max_positions"),
     ({"stages": [{"name": "a", "settings": {"trainer.keep_best": "val/nelbo"}}]}, "keep_best follows from the stages"),
     ({"stages": [{"name": "a"}, {"name": "b", "settings": {"trainer.initial_weights": "x"}}]},
      "stage b: trainer.initial_weights follows from the stages"),
     ({"preset": "tny"}, "unknown preset 'tny'")],
)  # fmt: skip
def test_mistakes_name_the_stage(change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_stages(TWO | change)


def test_llada_moe_has_its_tokens_bases_and_contexts() -> None:
    stages = {stage.name: stage for stage in llada_moe_stages({"sft": "instructions:x.jsonl"}, sft_steps=2000)}
    configs = {name: stage.config for name, stage in stages.items()}
    assert list(configs) == ["pretrain-1", "pretrain-2", "anneal-1", "anneal-2", "sft"]
    tokens = {name: config.trainer.steps * config.tokens_per_step for name, config in configs.items()}
    for name, wanted in (("pretrain-1", 10e12), ("pretrain-2", 10e12), ("anneal-1", 500e9), ("anneal-2", 500e9)):
        assert 0 <= tokens[name] - wanted < configs[name].tokens_per_step
    # By hand: 256 sequences of 4096, of which 1 % of the batches are (8 + 4096) / 2 long on average.
    assert configs["pretrain-1"].trainer.steps == -(-(10**13) // (256 * (4096 - 0.01 * 2044)))
    assert [config.model.rope_theta for config in configs.values()] == [1e4, 1e4, 5e4, 5e4, 5e4]
    assert [config.data.sequence_length for config in configs.values()] == [4096] * 3 + [8192] * 2
    assert [config.data.variable_length_share for config in configs.values()] == [0.01] * 4 + [0]
    assert configs["sft"].objective.kind == "sft" and configs["sft"].data.packing
    assert (
        configs["sft"].data.corpus == "instructions:x.jsonl" and configs["anneal-1"].data.corpus == "unnamed:anneal-1"
    )
    assert {stage.select for stage in stages.values()} == {"val/nelbo"}
    with pytest.raises(UserError, match="'pretrain' is no stage of LLaDA-MoE: use pretrain-1"):
        llada_moe_stages({"pretrain": "stdlib"}, sft_steps=1)


def test_a_proxy_has_the_same_stages() -> None:
    share = 1e-8
    stages = llada_moe_stages({}, sft_steps=10, base=preset("tiny"), share=share, settings={"sft": {"seed": 5}})
    assert stages[0].config.model.hidden_size == 96 and stages[4].config.seed == 5
    assert stages[0].config.trainer.steps == -(-(10**5) // (16 * (64 - 0.01 * 28)))
