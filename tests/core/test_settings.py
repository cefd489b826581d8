import pytest
import yaml
from omegaconf import OmegaConf

from core.config import to_dict, to_yaml
from core.errors import UserError
from core.presets import PRESETS
from core.settings import _merge_by_key, _merge_whole, build, load, parse_overrides


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.topk": 3}, "did you mean model.top_k"),
        ({"top_k": 3}, "did you mean model.top_k?"),
        ({"model.top_k": "x"}, "model.top_k: .*expected a whole number"),
        ({"model.top_k": 9}, "top_k <= 8"),
        ({"model.router.kind": "zz"}, "model.router.kind: .*topk"),
        ({"model": 3}, "model is a section"),
        ({"data.corpus": "${oc.env:HOME}"}, "data.corpus: .*is not read here"),
        ({"objective.epsilon": float("nan")}, "finite"),
        ({"trainer.steps": True}, "trainer.steps: true/false"),
        ({"trainer.steps": 1.5}, "trainer.steps: .*whole number"),
        ({"seed": None}, "seed: "),
        ({"seeds.0": 9}, "did you mean seed"),
        ({"objective.z_loss_weight": -1}, "must not be negative"),
        ({"model.expert_width": 30}, "multiple of 4"),
        ({"model.head_dim": 7}, "must be even"),
        ({"model.expert_width": 12, "trainer.precision": "bf16"}, "multiple of 8"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        build(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_merged_at_once_are_those_merged_key_by_key(name: str) -> None:
    layers = [to_dict(PRESETS[name]), {"seed": 5, "model": {"router": {"time_bins": 4}}, "model.dense_layers": []}]
    assert OmegaConf.to_object(_merge_whole(layers)) == OmegaConf.to_object(_merge_by_key(layers))


@pytest.mark.parametrize("first", ["x", 3])
def test_a_key_that_is_set_twice_is_checked_twice_and_the_later_wins(first: str | int) -> None:
    settings = {"model": {"top_k": first}, "model.top_k": 2}
    if first == 3:
        assert build(settings).model.top_k == 2
        return
    with pytest.raises(UserError, match=r"model\.top_k: .*expected a whole number"):
        build(settings)


def test_yaml_round_trip_gives_an_equal_config(tmp_path) -> None:
    config = build({"model.top_k": 4, "optimizer": {"learning_rate": "1e-3"}, "seed": 7})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(path) == config
    assert config.optimizer.learning_rate == 1e-3
    assert load(path, {"model.top_k": 2}).model.top_k == 2


def test_later_layers_win_and_dotted_equals_nested() -> None:
    assert build({"model.top_k": 1}, {"model": {"top_k": 2}}).model.top_k == 2
    assert build({"model": {"top_k": 3}}) == build({"model.top_k": 3})


@pytest.mark.parametrize("argument", ["steps", "=3", "trainer.steps=[1"])
def test_settings_need_key_and_value(argument: str) -> None:
    with pytest.raises(UserError):
        parse_overrides([argument])


def test_settings_keep_equals_signs_in_values() -> None:
    assert parse_overrides(["data.corpus=text:/a=b", "seed=3"]) == {"data.corpus": "text:/a=b", "seed": 3}


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [", "just text"])
def test_a_file_that_is_no_config_is_named(tmp_path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="broken.yaml"):
        load(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no such config file"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.dense_layers": 3}, r"model.dense_layers: '3' doesn't fit; expected a list of whole numbers"),
        ({"model.dense_layers": ["a"]}, r"model.dense_layers: .*expected a list of whole numbers"),
        ({"model.num_kv_heads": "x"}, "model.num_kv_heads: .*expected a whole number or null"),
        ({"model.qk_norm": "both"}, "model.qk_norm: .*expected one of"),
    ],
)
def test_lists_choices_and_optional_values_are_checked(settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(settings)


def test_lists_read_back_as_they_were_written() -> None:
    config = build({"model": {"dense_layers": [0, 2], "dense_width": 64, "num_kv_heads": 2}})
    assert config.model.dense_layers == (0, 2)
    assert build(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 100_000, "nested too deeply"), ("seed: 2001-99-99", "not YAML"), (f"seed: {'9' * 5000}", "not YAML"),
        (f"trainer: {{steps: {'9' * 400}}}", "a number of 400 digits"), ("a: &a\n  b: *a\n", "unfold"),
        ("model: {router: {k_schedule: true}}", "expected one of constant, linear"),
        ("model: {num_layers: 99999999999}", "at most 10000"),
    ],
)  # fmt: skip
def test_hostile_files_cost_one_short_line(tmp_path, text, said) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        load(tmp_path / "config.yaml")
    assert len(str(raised.value)) < 500
