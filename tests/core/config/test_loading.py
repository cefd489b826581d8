import pytest

from core.config.loading import build, load, parse_overrides, parse_yaml, read_yaml
from core.config.run import to_yaml
from core.errors import UserError


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
        ({"model.dense_layers": 3}, r"model.dense_layers: '3' doesn't fit; expected a list of whole numbers"),
        ({"model.dense_layers": ["a"]}, r"model.dense_layers: .*expected a list of whole numbers"),
        ({"model.num_kv_heads": "x"}, "model.num_kv_heads: .*expected a whole number or null"),
        ({"model.qk_norm": "both"}, "model.qk_norm: .*expected one of"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        build(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "said"), [("x", ".*expected a whole number"), (3, " is given twice")])
def test_a_key_that_is_set_nested_and_with_dots_is_refused(first: str | int, said: str) -> None:
    with pytest.raises(UserError, match=rf"model\.top_k:?{said}"):
        build({"model": {"top_k": first}, "model.top_k": 2})


def test_yaml_round_trip_gives_an_equal_config(tmp_path) -> None:
    dense = {"dense_layers": [0, 2], "dense_width": 64, "num_kv_heads": 2}
    config = build({"model.top_k": 4, "model": dense, "optimizer": {"learning_rate": "1e-3"}, "seed": 7})
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(path) == config
    assert config.optimizer.learning_rate == 1e-3 and config.model.dense_layers == (0, 2)
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


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no such config file: .*none.yaml"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 100_000, "nested too deeply"), ("seed: 2001-99-99", "is text; expected a whole number"),
        (f"seed: {'9' * 5000}", "not YAML"),
        (f"trainer: {{steps: {'9' * 400}}}", "a number of 400 digits"), ("a: &a\n  b: *a\n", "unfold"),
        ("model: {router: {k_schedule: true}}", "expected one of constant, linear"),
        ("model: {num_layers: 99999999999}", "at most 10000"), ("- 1\n- 2\n", "config.yaml must hold a mapping"),
        ("a: [", "config.yaml is not YAML"), ("just text", "config.yaml must hold a mapping"),
    ],
)  # fmt: skip
def test_files_that_are_no_config_cost_one_short_line(tmp_path, text, said) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        load(tmp_path / "config.yaml")
    assert len(str(raised.value)) < 500


NUMBERS_OF_YAML = [
    ("7", 7), ("-3", -3), ("1_000", 1000), ("0x10", 16), ("1e3", 1000.0), ("1e-3", 0.001), ("1.5E+2", 150.0), (".5", 0.5),
    ("010", "010"), ("-007", "-007"), ("1:30", "1:30"), ("1:30:00.5", "1:30:00.5"), ("2024-01-01", "2024-01-01"),
    ("2024-02-31", "2024-02-31"), ("0o10", "0o10"), ("1e400", float("inf")), ("null", None), ("true", True), ("'7'", "7"),
    ("inf", "inf"), ("[1, 010]", [1, "010"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), NUMBERS_OF_YAML)
def test_yaml_numbers_are_the_ones_that_their_digits_say(text: str, expected: object) -> None:
    read = parse_yaml(text)
    assert read == expected and type(read) is type(expected)


@pytest.mark.parametrize(
    "value",
    ["inf", "-inf", ".inf", "nan", ".nan", "1e400", "-1e999", "Infinity", "1:30", "2024-01-01", "'inf'"],
)
@pytest.mark.parametrize("key", ["optimizer.learning_rate", "trainer.steps", "model.mask_id"])
def test_no_number_is_infinite_or_read_as_another(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: .*(finite|text|whole number)"):
        build(parse_overrides([f"{key}={value}"]))


def test_leading_zeros_are_refused_and_text_stays_text() -> None:
    for text in ("010", "0017", "1_0x", "٣"):
        with pytest.raises(UserError, match=r"trainer\.steps: .*expected a whole number"):
            build(parse_overrides([f"trainer.steps={text}"]))
    assert build(parse_overrides(["data.corpus=text:010"])).data.corpus == "text:010"
    assert build({"trainer.initial_weights": "2024-01-01"}).trainer.initial_weights == "2024-01-01"
    with pytest.raises(UserError, match=r"trainer\.initial_weights: 1000\.0 is a number; expected text"):
        build(parse_overrides(["trainer.initial_weights=1e3"]))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (
            "trainer:\n  steps: 7\nmodel: {top_k: 2}\ntrainer:\n  seed: 4\n",
            "'trainer' is given twice, in lines 1 and 4",
        ),
        ("trainer:\n  steps: 7\n  steps: 300\n", "'steps' is given twice, in lines 2 and 3"),
        ("model: {top_k: 1, top_k: 2}\n", "'top_k' is given twice, in line 1"),
        ("trainer.steps: 7\ntrainer: {steps: 300}\n", r"trainer\.steps is given twice, nested and with dots"),
        ("stages:\n- {name: a, name: b}\n", "'name' is given twice, in line 2"),
    ],
)
def test_a_key_that_a_file_gives_twice_is_refused_with_its_lines(tmp_path, content: str, lines: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=lines):
        load(tmp_path / "config.yaml")


def test_a_key_beside_what_an_alias_brings_is_given_once(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(
        "base: &b {steps: 3, log_every: 5}\ntrainer: {<<: *b, steps: 7}\nagain: {<<: [*b, *b]}\n"
    )
    assert read_yaml(tmp_path / "c.yaml")["trainer"] == {"steps": 7, "log_every": 5}


def test_the_last_setting_of_a_command_line_counts_and_none_is_twice_within_one() -> None:
    assert parse_overrides(["trainer.steps=7", "seed=1", "trainer.steps=300"]) == {"trainer.steps": 300, "seed": 1}
    with pytest.raises(UserError, match=r"^trainer: 'steps' is given twice, in line 1"):
        parse_overrides(["trainer={steps: 7, steps: 300}"])
