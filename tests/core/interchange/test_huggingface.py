"""Configs and weights survive the way out and back; what isn't whole is refused in one line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config.model import ModelConfig, RouterConfig
from core.config.presets import preset
from core.errors import UserError
from core.interchange.huggingface import load, save
from core.interchange.layouts import config_from_hf, config_to_hf, layout_for
from core.model.transformer import Denoiser, initialise

SMALL = ModelConfig(
    vocab_size=64, mask_id=60, eos_id=61, pad_id=61, hidden_size=32, num_layers=2, num_heads=4, head_dim=8,
    num_experts=4, top_k=2, expert_width=16,
)  # fmt: skip


def model(config: ModelConfig = SMALL) -> Denoiser:
    made = Denoiser(config)
    initialise(made, 0)
    return made


def written(folder: Path, config: ModelConfig = SMALL, **settings) -> Path:
    save(config, model(config).state_dict().__getitem__, folder, **settings)
    return folder


@pytest.mark.parametrize(
    ("name", "layout"),
    [("llada_moe_7b_a1b", "llada_moe"), ("llada_8b", "llada"), ("qwen2_5_3b", "qwen2"), ("olmoe_1b_7b", "olmoe")],
)
def test_published_configs_survive_the_round_trip(name: str, layout: str) -> None:
    config = preset(name).model
    assert layout_for(config) == layout
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


def test_published_keys_say_what_the_published_files_say() -> None:
    said = config_to_hf(preset("llada_moe_7b_a1b").model)
    expected = {
        "architectures": ["LLaDAMoEModelLM"], "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024,
        "vocab_size": 157184, "rope_theta": 50000.0, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "eos_token_id": 156892, "pad_token_id": 156892, "mask_token_id": 156895, "tie_word_embeddings": False,
        "norm_topk_prob": False, "qk_layernorm": True,
    }  # fmt: skip
    assert {key: said.get(key) for key in expected} == expected
    dense = config_to_hf(preset("llada_8b").model)
    assert (dense["d_model"], dense["mlp_hidden_size"], dense["embedding_size"]) == (4096, 12288, 126464)


VARIANTS = {
    "llada_moe": {},
    "llada_moe, dense first layer and shared expert": {
        "dense_layers": (0,), "dense_width": 40, "shared_expert_width": 12,
    },
    "llada_moe, fine experts": {"granularity": 2},
    "llada": {"num_experts": 0, "top_k": 0, "expert_width": 0, "dense_width": 40, "qk_norm": "none", "tied_embeddings": True},
    "olmoe, bidirectional": {"qk_norm": "projection"},
    "qwen2": {
        "num_experts": 0, "top_k": 0, "expert_width": 0, "dense_width": 40, "qk_norm": "none", "qkv_bias": True,
        "causal": True, "num_kv_heads": 2, "mask_id": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [2**30, 5000])
@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_weights_survive_the_round_trip_bit_for_bit(tmp_path, change: dict, shard_bytes: int) -> None:
    original = model(replace(SMALL, **change))
    save(original.config, original.state_dict().__getitem__, tmp_path, shard_bytes=shard_bytes)
    back = load(tmp_path)
    if "granularity" not in change:  # config.json counts experts after the split
        assert back.config == original.config
    assert back.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in back.state_dict().items())
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert (len(sizes) == 1) == (shard_bytes == 2**30)


def test_expert_names_are_those_of_the_released_weights(tmp_path) -> None:
    names = load_file(written(tmp_path) / "model.safetensors")
    assert names["model.layers.1.mlp.experts.3.down_proj.weight"].shape == (32, 16)
    assert names["model.layers.0.mlp.gate.weight"].shape == (4, 32)
    assert names["model.layers.0.self_attn.q_norm.weight"].shape == (8,)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= names.keys()


def test_weights_can_be_written_and_read_in_bf16(tmp_path) -> None:
    back = load(written(tmp_path, dtype=torch.bfloat16))
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path, torch.float32).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"router": RouterConfig(kind="bias_balanced")}, "needs model.router.kind=topk, not bias_balanced"),
        ({"router": RouterConfig(scores="sigmoid")}, "needs model.router.scores=softmax"),
        ({"causal": True}, "no Hugging Face class"),
        ({"shifted": True}, "needs model.shifted=False, not True"),
        ({"block_length": 8}, "needs model.block_length=None, not 8"),
        ({"head_dim": 16}, "needs model.head_dim=8"),
    ],
)
def test_what_no_class_can_say_is_refused(tmp_path, change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        written(tmp_path / "out", replace(SMALL, **change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is unknown"),
        ({"architectures": None}, "architecture '' is unknown"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling 'yarn' isn't supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu isn't supported; it would have to be silu"),
        ({"clip_qkv": 8}, "clip_qkv=8 isn't supported"),
        ({"attention_bias": True}, "attention_bias=True isn't supported"),
        ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True isn't supported"),
        ({"mask_token_id": 61}, "mask_token_id=61 is also eos or pad"),
        ({"num_experts_per_tok": 9}, "model.top_k=9 exceeds model.num_experts=4"),
        ({"num_experts": None}, "config.json lacks the key 'num_experts'"),
    ],
)
def test_configs_that_ask_for_something_else_are_refused(tmp_path, change: dict, expected: str) -> None:
    path = written(tmp_path) / "config.json"
    said = json.loads(path.read_text()) | change
    path.write_text(
        json.dumps({key: value for key, value in said.items() if value is not None or key == "architectures"})
    )
    with pytest.raises(UserError, match=expected):
        load(tmp_path)


def rewritten(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda w: w.pop("model.norm.weight"), "lacks 1 tensors that config.json asks for, such as model.norm.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "has 1 tensors that config.json has no place for: extra"),
        (lambda w: w.update({"model.norm.weight": torch.ones(31)}), r"model.norm.weight has shape \(31,\), .* \(32,\)"),
    ],
)
def test_checkpoints_of_another_shape_are_refused(tmp_path, damage, expected: str) -> None:
    rewritten(written(tmp_path), damage)
    with pytest.raises(UserError, match=expected):
        load(tmp_path)


def test_truncated_and_pickled_and_absent_weights_are_refused(tmp_path) -> None:
    path = written(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or no safetensors file"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index.json$"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="its weights are pickled, which can run code: convert them to safetensors"):
        load(tmp_path)


def test_an_index_leads_nowhere_outside_its_folder(tmp_path) -> None:
    written(tmp_path / "a", shard_bytes=5000)
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"names '../b.safetensors', which is no file of that folder"):
        load(tmp_path / "a")


def test_an_index_of_anything_is_refused(tmp_path) -> None:
    written(tmp_path, shard_bytes=5000)
    index = tmp_path / "model.safetensors.index.json"
    for names in ({"x": 1, "y": "c"}, {"x": None}, {"x": "a" * 5000}, {"x": "/dev/zero"}):
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(UserError, match=r"which is no file of that folder"):
            load(tmp_path)
    for content in ("[]", "{}", '{"weight_map": 1}', "[" * 200_000):
        index.write_text(content)
        with pytest.raises(UserError, match="can't read"):
            load(tmp_path)


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path) -> None:
    assert (written(tmp_path) / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not list(tmp_path.glob(".*"))


def test_a_target_that_is_no_folder_or_not_empty_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        written(tmp_path / "file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a model already \(config.json\)"):
        written(tmp_path / "a")


def test_weights_that_are_there_are_not_written_over(tmp_path) -> None:
    written(tmp_path)
    with pytest.raises(UserError, match=r"holds a model already \(model.safetensors\)"):
        written(tmp_path)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from core.config.model import ModelConfig
from core.interchange.huggingface import load, save
from core.model.transformer import Denoiser
config = ModelConfig(hidden_size=512, num_layers=8, num_heads=8, head_dim=64, num_experts=16, top_k=2, expert_width=256)
folder, verb = Path(sys.argv[1]), sys.argv[2]
if verb == "save":
    made = Denoiser(config)
    for parameter in made.parameters():
        torch.nn.init.constant_(parameter, 0.5)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if verb == "save":
    save(config, made.state_dict().__getitem__, folder, shard_bytes=2**25)
else:
    made = load(folder)
size = sum(p.numel() * p.itemsize for p in made.parameters()) / 1024
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.slow
def test_a_model_is_read_and_written_in_the_memory_of_one_copy(tmp_path) -> None:
    def grown(verb: str) -> tuple[float, float]:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), verb]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, growth = map(float, done.stdout.split())
        return size, growth

    size, growth = grown("save")  # the model is there; a shard of 32 MiB is copied and written
    assert size > 200_000 and growth < 0.6 * size
    size, growth = grown("load")
    assert growth < 1.35 * size + 30_000
