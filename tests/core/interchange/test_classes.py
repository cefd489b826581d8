"""Every exported model loads in its class and computes the same there, in training too; config.json leaves nothing to it."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.config.model import ModelConfig, RouterConfig
from core.config.presets import preset
from core.errors import UserError
from core.interchange.huggingface import load, save
from core.interchange.layouts import LAYOUTS, auxiliary_loss, config_to_hf
from core.model.balance import load_balancing_loss
from core.model.transformer import Denoiser, initialise
from tests.core.interchange.published_classes import LLADA_DEFAULTS, LLADA_MOE_DEFAULTS, LLaDA, LLaDAMoE
from tests.core.interchange.test_huggingface import SMALL

transformers = pytest.importorskip("transformers")

DENSE = {"num_experts": 0, "top_k": 0, "expert_width": 0, "dense_width": 40, "qk_norm": "none"}
TOKENS_BL = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(0))
OWN_CODE = {
    "llada_moe": (LLaDAMoE, {}),
    "llada_moe, dense layer, shared expert": (
        LLaDAMoE, {"dense_layers": (0,), "dense_width": 40, "shared_expert_width": 12},
    ),
    "llada_moe, grouped queries, no pad": (LLaDAMoE, {"num_kv_heads": 2, "pad_id": None, "eos_id": None}),
    "llada": (LLaDA, DENSE),
    "llada, tied, grouped": (LLaDA, DENSE | {"tied_embeddings": True, "num_kv_heads": 2}),
}  # fmt: skip
SHIPPED = {
    "olmoe": {"qk_norm": "projection", "causal": True},
    "olmoe, bidirectional": {"qk_norm": "projection", "router": RouterConfig(renormalise=True)},
    "qwen2": DENSE | {"qkv_bias": True, "causal": True, "num_kv_heads": 2},
    "qwen2, bidirectional, tied": DENSE | {"qkv_bias": True, "tied_embeddings": True},
    "llama": DENSE | {"causal": True},
    "llama, wide heads": DENSE | {"causal": True, "head_dim": 16},
    "qwen2, wide heads": DENSE | {"qkv_bias": True, "causal": True, "head_dim": 16, "num_kv_heads": 2},
}


def exported(folder: Path, changes: dict, **settings) -> Denoiser:
    """A model whose weights are all unlike, written to a folder."""
    made = Denoiser(replace(SMALL, rope_theta=3e3, init_std=0.2, **changes))
    initialise(made, 0)
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            if parameter.ndim == 1:  # norms at 1 and biases at 0 would hide mistakes
                parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(index))
    save(made.config, made.state_dict().__getitem__, folder, **settings)
    return made.eval()


def said(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("cls", "changes"), OWN_CODE.values(), ids=OWN_CODE)
def test_an_export_is_the_same_model_in_the_class_of_its_authors(tmp_path, cls, changes: dict) -> None:
    ours = exported(tmp_path, changes)
    theirs = cls(said(tmp_path))
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.no_grad():
        for mode in (theirs.eval(), theirs.train()):  # in training nothing is dropped
            torch.testing.assert_close(mode(TOKENS_BL), ours(TOKENS_BL)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", SHIPPED.values(), ids=SHIPPED)
def test_an_export_is_the_same_model_in_transformers(tmp_path, changes: dict, attention: str) -> None:
    ours = exported(tmp_path, changes)
    name = said(tmp_path)["architectures"][0]
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path, attn_implementation=attention, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(TOKENS_BL).logits, ours(TOKENS_BL)[0], atol=1e-4, rtol=0)
    assert load(tmp_path).config == ours.config


@pytest.mark.parametrize(
    ("layout", "defaults"),
    [
        ("llada_moe", LLADA_MOE_DEFAULTS),
        ("llada", LLADA_DEFAULTS),
        ("olmoe", transformers.OlmoeConfig),
        ("qwen2", transformers.Qwen2Config),
        ("llama", transformers.LlamaConfig),
    ],
)
def test_config_json_leaves_no_key_of_the_class_to_chance(layout: str, defaults) -> None:
    changes = {
        "olmoe": {"qk_norm": "projection"}, "qwen2": DENSE | {"qkv_bias": True}, "llama": DENSE, "llada": DENSE,
    }.get(layout, {})  # fmt: skip
    written = config_to_hf(replace(SMALL, pad_id=None, eos_id=None, **changes), layout)
    if isinstance(defaults, dict):
        keys = set(defaults)
    else:
        inherited = {field.name for field in fields(transformers.PreTrainedConfig)}
        keys = {field.name for field in fields(defaults)} - inherited | {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert keys - set(written) == set()


@pytest.mark.parametrize("name", ["olmoe", "qwen2", "llama"])
def test_the_defaults_that_are_read_by_are_those_of_transformers(name: str) -> None:
    theirs = getattr(transformers, {"olmoe": "OlmoeConfig", "qwen2": "Qwen2Config", "llama": "LlamaConfig"}[name])
    for field in fields(theirs):
        if field.name in LAYOUTS[name].defaults:
            assert LAYOUTS[name].defaults[field.name] == field.default, field.name
    assert theirs.default_theta == 1e4


@pytest.mark.parametrize(("name", "defaults"), [("llada_moe", LLADA_MOE_DEFAULTS), ("llada", LLADA_DEFAULTS)])
def test_the_defaults_that_are_read_by_are_those_of_the_authors(name: str, defaults: dict) -> None:
    ours = LAYOUTS[name].defaults
    assert ours == {key: defaults[key] for key in ours}


def test_the_three_dropouts_and_the_rotary_share_are_said() -> None:
    dense, sparse = config_to_hf(preset("llada_8b").model), config_to_hf(preset("llada_moe_7b_a1b").model)
    assert [dense[f"{name}_dropout"] for name in ("attention", "residual", "embedding")] == [0, 0, 0]
    assert sparse["partial_rotary_factor"] == 1 and sparse["shared_expert_intermediate_size"] is None
    for said_of, cls in ((dense, "modeling_llada.LLaDAModelLM"), (sparse, "modeling_lladamoe.LLaDAMoEModelLM")):
        repository, where = said_of["auto_map"]["AutoModelForCausalLM"].split("--")
        assert where == cls and repository.count("/") == 1  # the hub's, since an export holds no code


def test_renormalised_gates_are_refused_where_the_class_has_none(tmp_path) -> None:
    renormalised = replace(SMALL, router=RouterConfig(renormalise=True))
    with pytest.raises(UserError, match=r"llada_moe, needs model.router.renormalise=False, not True"):
        config_to_hf(renormalised)
    assert config_to_hf(replace(renormalised, qk_norm="projection"))["norm_topk_prob"] is True


def test_the_auxiliary_loss_is_the_one_here_times_the_experts_of_a_token() -> None:
    """Of one layer: the class's loss is K times ours, so that its coefficient is a K-th of our weight."""
    from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

    logits_NE = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    probs_NE = logits_NE.softmax(-1)
    counts_E = torch.bincount(probs_NE.topk(3, -1).indices.flatten(), minlength=8)
    ours = load_balancing_loss(probs_NE, counts_E)
    theirs = load_balancing_loss_func((logits_NE,), 8, 3)
    torch.testing.assert_close(theirs, 3 * ours)
    model = ModelConfig(num_experts=8, top_k=3)
    coefficient = config_to_hf(model, load_balancing_weight=0.01)["router_aux_loss_coef"]
    torch.testing.assert_close(coefficient * theirs, 0.01 * ours)
    assert "router_aux_loss_coef=0.00333333 is objective.load_balancing_weight=0.01" in auxiliary_loss(model, 0.01)
    assert "hand out no router logits" in auxiliary_loss(model, 0.01)  # LLaDA-MoE's alone
    assert "hand out" not in auxiliary_loss(replace(SMALL, qk_norm="projection"), 0.01)
    assert auxiliary_loss(replace(SMALL, **DENSE), 0.01) == ""
