"""A config.json is read as its class reads it, or refused in one line that names the key; no weight loses digits unsaid."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import UserError
from core.interchange.folders import find
from core.interchange.huggingface import load, save, stored_types
from core.interchange.layouts import LAYOUTS, Ids, config_from_hf, config_to_hf, ignored, load_balancing_weight
from tests.core.interchange.published_classes import LLaDA, LLaDAMoE
from tests.core.interchange.test_classes import DENSE, TOKENS_BL, exported, said
from tests.core.interchange.test_huggingface import SMALL

transformers = pytest.importorskip("transformers")

QWEN2 = DENSE | {"qkv_bias": True, "causal": True}
OLMOE = {"qk_norm": "projection", "causal": True}
ABSENT = object()


def changed(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a folder's config.json."""
    new = {key: value for key, value in (said(folder) | changes).items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(new))
    return new


@pytest.mark.parametrize("value", [True, False, None])
def test_gates_are_renormalised_as_the_class_does_whatever_the_file_says(tmp_path, value: bool | None) -> None:
    exported(tmp_path, {})
    theirs = LLaDAMoE(changed(tmp_path, {"norm_topk_prob": value}))
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(TOKENS_BL)[0], theirs(TOKENS_BL), atol=1e-5, rtol=1e-5)
    notes = ["config.json: norm_topk_prob=True is ignored, as LLaDAMoEModelLM ignores it"] if value else []
    assert ignored(said(tmp_path)) == notes


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (OLMOE, {"is_causal": False}),
        (QWEN2, {"is_causal": False}),
        (QWEN2, {"attention_bias": False}),
        (QWEN2, {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}),
        (QWEN2, {"rope_theta": 500.0, "rope_parameters": ABSENT}),
        (QWEN2, {"rope_theta": ABSENT, "rope_parameters": ABSENT}),
        (OLMOE, {"rope_theta": 500.0, "rope_scaling": {"rope_type": "default", "rope_theta": 7e3}}),
        (OLMOE, {"num_key_value_heads": ABSENT, "rms_norm_eps": ABSENT, "norm_topk_prob": ABSENT}),
        (OLMOE, {"norm_topk_prob": True, "pad_token_id": -1}),
    ],
)
def test_files_are_read_as_transformers_reads_them(tmp_path, model: dict, changes: dict) -> None:
    exported(tmp_path, model)
    name = changed(tmp_path, changes)["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(TOKENS_BL)[0], theirs(TOKENS_BL).logits, atol=1e-4, rtol=0)


def test_a_width_that_is_null_is_the_ratio_of_the_class(tmp_path) -> None:
    exported(tmp_path, DENSE | {"dense_width": 96})
    theirs = LLaDA(changed(tmp_path, {"mlp_hidden_size": None, "mlp_ratio": 3}))
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(TOKENS_BL)[0], theirs(TOKENS_BL), atol=1e-5, rtol=1e-5)


def test_older_exports_without_the_rotary_share_are_still_read(tmp_path) -> None:
    ours = exported(tmp_path, {})
    changed(tmp_path, {"partial_rotary_factor": ABSENT, "moe_layer_freq": ABSENT, "auto_map": ABSENT})
    assert load(tmp_path).config == ours.config
    bidirectional = config_to_hf(replace(SMALL, qk_norm="projection"))
    del bidirectional["is_causal"]
    assert not config_from_hf(bidirectional | {"bidirectional": True}).causal
    assert ignored(bidirectional | {"bidirectional": True}) == [
        "config.json: bidirectional is followed; transformers knows it as is_causal=false"
    ]


@pytest.mark.parametrize("key", ["router_num_group", "router_topk_group"])
def test_the_groups_that_the_class_defaults_to_are_none(key: str) -> None:
    assert config_from_hf(config_to_hf(SMALL) | {key: -2}) == SMALL


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ({}, {"moe_layer_freq": 1}, r"moe_layer_freq=1 must list 0 \(dense\) or 1 for each of 2 layers"),
        ({}, {"moe_layer_freq": [1]}, r"moe_layer_freq=\[1\] must list"),
        ({}, {"moe_layer_freq": [1, 2]}, r"moe_layer_freq=\[1, 2\] must list"),
        ({}, {"qk_layernorm": ABSENT}, "qk_layernorm=None isn't supported; it would have to be True"),
        ({}, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 isn't supported; it would have to be 1.0"),
        ({}, {"routed_scaling_factor": 2.5}, "routed_scaling_factor=2.5 isn't supported"),
        ({}, {"router_num_group": 8}, "router_num_group=8 isn't supported; it would have to be absent"),
        ({}, {"rope_theta": ABSENT}, "config.json lacks the key 'rope_theta'"),
        ({}, {"rope_parameters": {"rope_theta": 7e3}}, "rope_theta=10000 and rope_parameters.rope_theta=7000 differ"),
        ({}, {"rope_scaling": "yarn"}, "rope_scaling='yarn' must be an object"),
        ({}, {"hidden_size": "32"}, "hidden_size='32' must be a whole number"),
        ({}, {"hidden_size": 31}, "num_attention_heads=4 must divide hidden_size=31"),
        ({}, {"num_attention_heads": 0}, "num_attention_heads=0 must divide"),
        ({}, {"num_hidden_layers": True}, "num_hidden_layers=True must be a whole number"),
        ({}, {"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
        ({}, {"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be a number"),
        ({}, {"mask_token_id": "<mask>"}, "mask_token_id='<mask>' must be a token's id"),
        ({}, {"architectures": "LLaDAMoEModelLM"}, "architecture '' is unknown"),
        ({}, {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} isn't supported"),
        ({}, {"rope_parameters": {"rope_theta": "1e4"}}, "rope_parameters.rope_theta='1e4' must be a number"),
        ({}, {"rope_scaling": {"factor": 4}}, "rope_scaling={'factor': 4} names no rope_type"),
        (DENSE, {"rope_full_precision": False}, "rope_full_precision=False isn't supported"),
        (DENSE, {"multi_query_attention": False, "n_kv_heads": 2}, "multi_query_attention=False and n_kv_heads=2 differ"),
        (QWEN2, {"layer_types": 5}, "layer_types=5 isn't supported"),
        (QWEN2, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "by kind of layer isn't supported"),
        ({}, {"rope_theta": float("inf")}, "rope_theta must be a finite number"),
        ({}, {"rope_theta": float("nan")}, "rope_theta must be a finite number"),
        ({}, {"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite number"),
        ({}, {"max_position_embeddings": 10**400}, "max_position_embeddings has 401 digits"),
        ({}, {"model_type": "qwen2"}, "model_type=qwen2 isn't supported; it would have to be llada"),
        (OLMOE, {"bidirectional": True}, "is_causal=True and bidirectional=True contradict each other"),
        (QWEN2, {"per_layer_config": {"0": {}}}, "per_layer_config={'0': {}} isn't supported"),
        (QWEN2, {"head_dim": 0}, "model.head_dim must be at least 1"),
        (DENSE, {"layer_norm_type": ABSENT}, "layer_norm_type=default isn't supported; it would have to be rms"),
        (DENSE, {"rope": ABSENT}, "rope=False isn't supported; it would have to be True"),
        (DENSE, {"activation_type": ABSENT}, "activation_type=swiglu isn't supported"),
        (DENSE, {"multi_query_attention": True}, "multi_query_attention=True isn't supported"),
        (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "all would have to be full_attention"),
        (QWEN2, {"is_causal": "no"}, "is_causal='no' must be true or false"),
        (OLMOE, {"attention_bias": True}, "attention_bias=True isn't supported"),
        (OLMOE, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope scaling 'yarn' isn't supported"),
    ],
)  # fmt: skip
def test_what_another_model_would_come_of_is_refused(model: dict, changes: dict, expected: str) -> None:
    written = config_to_hf(replace(SMALL, **model)) | changes
    with pytest.raises(UserError, match=expected):
        config_from_hf({key: value for key, value in written.items() if value is not ABSENT})


def test_keys_that_a_class_takes_by_itself_are_read_so() -> None:
    """LLaDA's class ties embeddings and has 50304 of them unless it is told otherwise."""
    written = config_to_hf(replace(SMALL, **DENSE))
    for key in ("weight_tying", "embedding_size"):
        del written[key]
    found = config_from_hf(written)
    assert found.tied_embeddings and found.vocab_size == 50304


def test_the_mask_can_be_named(tmp_path) -> None:
    exported(tmp_path, {})
    changed(tmp_path, {"mask_token_id": ABSENT})
    assert find(tmp_path).model.mask_id is None
    assert find(tmp_path, Ids(59)).model.mask_id == 59 == load(tmp_path, ids=Ids(59)).config.mask_id
    with pytest.raises(UserError, match=r"--mask-id=61 is also eos or pad"):
        find(tmp_path, Ids(61))
    with pytest.raises(UserError, match=r"model.mask_id=64 must lie in 0\.\.63"):
        find(tmp_path, Ids(64))


def test_the_end_token_can_be_named() -> None:
    written = config_to_hf(replace(SMALL, **QWEN2)) | {"eos_token_id": None}
    assert config_from_hf(written).eos_id is None and config_from_hf(written, Ids(eos=7)).eos_id == 7


def test_the_auxiliary_loss_comes_back_as_the_weight_that_it_was() -> None:
    """A coefficient of 0.05 with two experts a token is a weight of 0.1 here, and goes out as 0.05 again."""
    written = config_to_hf(replace(SMALL, **OLMOE), load_balancing_weight=0.1)
    assert written["router_aux_loss_coef"] == 0.05 and load_balancing_weight(written) == 0.1
    del written["router_aux_loss_coef"]
    assert load_balancing_weight(written) == pytest.approx(2 * transformers.OlmoeConfig().router_aux_loss_coef)
    assert load_balancing_weight(config_to_hf(replace(SMALL, **QWEN2))) is None


def test_ids_below_zero_stand_for_none() -> None:
    found = config_from_hf(config_to_hf(SMALL) | {"eos_token_id": [-1], "pad_token_id": -1})
    assert found.eos_id is found.pad_id is None


def test_tied_embeddings_with_a_head_of_its_own_are_refused(tmp_path) -> None:
    exported(tmp_path, QWEN2 | {"tied_embeddings": True})
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert load(tmp_path).config.tied_embeddings  # the same matrix, stored twice
    head = weights["lm_head.weight"]
    others = [torch.cat([head[:-1], head[-1:] + 1]), head.bfloat16(), head[0, 0].clone(), head.to(torch.float8_e4m3fn)]
    for other in others:
        save_file(weights | {"lm_head.weight": other}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"ties the embeddings, and lm_head.weight is another matrix"):
            load(tmp_path)


def test_lladas_tied_embeddings_may_be_stored_twice(tmp_path) -> None:
    exported(tmp_path, DENSE | {"tied_embeddings": True})
    weights = load_file(tmp_path / "model.safetensors")
    embed = weights["model.transformer.wte.weight"]
    save_file(weights | {"model.transformer.ff_out.weight": embed.clone()}, tmp_path / "model.safetensors")
    assert load(tmp_path).config.tied_embeddings


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path) -> None:
    exported(tmp_path, {}, shard_bytes=20_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name, weight = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: weight}, second)
    with pytest.raises(UserError, match=f"{name} is in {first.name} and in {second.name}"):
        load(tmp_path)


def retyped(folder: Path, types: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """Store the weights whose names contain a key in its type, all others in bf16."""
    weights = {
        name: weight.to(next((kind for part, kind in types.items() if part in name), torch.bfloat16))
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors")
    return weights


def test_routers_and_norms_keep_their_type_beside_bf16(tmp_path) -> None:
    exported(tmp_path, {})
    stored = retyped(tmp_path, {"mlp.gate.weight": torch.float32, "norm": torch.float32})
    back = load(tmp_path)
    router = back.mixtures()[0].router.weight_ED
    assert router.dtype == torch.float32 and back.embed.weight.dtype == torch.bfloat16
    assert torch.equal(router, stored["model.layers.0.mlp.gate.weight"])
    assert torch.equal(back.norm.weight, stored["model.norm.weight"])
    assert back(TOKENS_BL)[0].isfinite().all()
    save(back.config, back.state_dict().__getitem__, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(
        again[name].dtype == weight.dtype and torch.equal(again[name], weight) for name, weight in stored.items()
    )
    assert said(tmp_path / "again")["torch_dtype"] == "float32"


def test_what_keeps_its_type_keeps_its_digits_in_transformers_too(tmp_path) -> None:
    exported(tmp_path / "a", OLMOE)
    stored = retyped(tmp_path / "a", {"mlp.gate.weight": torch.float32, "norm": torch.float32})
    back = load(tmp_path / "a")
    save(back.config, back.state_dict().__getitem__, tmp_path / "b")
    theirs = transformers.OlmoeForCausalLM.from_pretrained(tmp_path / "b").state_dict()
    for name in ("model.layers.0.mlp.gate.weight", "model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(theirs[name].double(), stored[name].double())


def test_matrices_of_unlike_types_get_the_widest_and_lose_nothing(tmp_path) -> None:
    exported(tmp_path, {})
    stored = retyped(tmp_path, {"experts.1.up_proj": torch.float32})
    back = load(tmp_path)
    assert {weight.dtype for name, weight in back.named_parameters() if "proj" in name} == {torch.float32}
    up_EWD = back.mixtures()[0].experts.up_EWD
    assert torch.equal(up_EWD[1], stored["model.layers.0.mlp.experts.1.up_proj.weight"])
    assert torch.equal(up_EWD[0], stored["model.layers.0.mlp.experts.0.up_proj.weight"].float())
    assert back(TOKENS_BL)[0].isfinite().all()
    assert {weight.dtype for weight in load(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert stored_types(find(tmp_path))["layers.0.moe.experts.up_EWD"] == torch.float32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"num_hidden_layers": 10**9, "moe_layer_freq": None},
            "asks for num_hidden_layers=1000000000, and the files hold",
        ),
        ({"num_experts": 10**9}, "asks for num_experts=1000000000, and the files hold 45 tensors"),
        ({"num_experts": 40}, "asks for 40 experts in 2 layers, and the files hold 45 tensors"),
    ],
)
def test_a_file_that_asks_for_more_than_there_is_costs_nothing(tmp_path, changes: dict, expected: str) -> None:
    exported(tmp_path, {})
    changed(tmp_path, changes)
    with pytest.raises(UserError, match=expected):
        find(tmp_path)


def test_a_single_file_comes_before_an_index_as_in_transformers(tmp_path) -> None:
    exported(tmp_path, OLMOE)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weight * 0.5 for name, weight in weights.items()}, tmp_path / "old.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "old.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = transformers.OlmoeForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(TOKENS_BL)[0], theirs(TOKENS_BL).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("content", ["[" * 200_000, "", "\ud800", "[1]"])
def test_a_config_that_is_none_is_refused(tmp_path, content: str) -> None:
    exported(tmp_path, {})
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"can't read .*config.json|must hold an object"):
        find(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"has no config.json"):
        find(tmp_path)


def test_whole_numbers_for_weights_are_refused(tmp_path) -> None:
    exported(tmp_path, {})
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight is stored as I8; known are F64, F32, F16, BF16"):
        load(tmp_path)


def test_the_page_names_every_key_that_is_refused() -> None:
    page = (Path(__file__).parents[3] / "docs" / "weights.md").read_text()
    for name, layout in LAYOUTS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{layout.architecture}`"))
        assert all(f"`{key}`" in row for key in (*layout.refused, *layout.ignored)), name
