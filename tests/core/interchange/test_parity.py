"""The network computes what others' implementations of the same models compute, gradients included."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.config.model import ModelConfig
from core.interchange.huggingface import load, save
from core.interchange.layouts import pieces
from core.model.attention import Attention, rope_tables
from core.model.routing import TopKRouter
from core.model.transformer import Denoiser, initialise
from tests.core.interchange.reference_llada_moe import logits as reference_logits

transformers = pytest.importorskip("transformers")

TOKENS_BL = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "initializer_range": 0.2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
OLMOE = SHAPE | {"num_key_value_heads": 4, "intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}
QWEN2 = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5}
LLAMA = SHAPE | {"num_key_value_heads": 4, "intermediate_size": 48}


def theirs(name: str, settings: dict):
    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms at 1 and biases at 0 would hide mistakes
                parameter.normal_(1.0, 0.3)
    return model


def gradients_of_theirs(model) -> dict[str, torch.Tensor]:
    """Gradients by the names of released checkpoints, in which experts are not stacked."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(parameter.grad):
                gate, up = both.chunk(2, dim=0)
                stem = name.removesuffix("gate_up_proj")
                found |= {f"{stem}{expert}.gate_proj.weight": gate, f"{stem}{expert}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            found |= {f"{stem}{expert}.down_proj.weight": down for expert, down in enumerate(parameter.grad)}
        else:
            found[name] = parameter.grad
    return found


def gradients_of_ours(model: Denoiser, layout: str) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    found = {}
    for piece in pieces(model.config, list(parameters), layout):
        gradient = parameters[piece.ours].grad
        found[piece.theirs] = gradient if piece.expert is None else gradient[piece.expert]
    return found


def assert_close_gradients(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert error < 1e-3, f"{name}: {error:.2e}"


@pytest.mark.parametrize(
    ("name", "layout", "settings", "full"),
    [
        ("Olmoe", "olmoe", OLMOE, False),
        ("Olmoe", "olmoe", OLMOE, True),
        ("Olmoe", "olmoe", OLMOE | {"norm_topk_prob": True, "num_key_value_heads": 2}, False),
        ("Qwen2", "qwen2", QWEN2, False),
        ("Qwen2", "qwen2", QWEN2 | {"tie_word_embeddings": True}, False),
        ("Llama", "llama", LLAMA, False),
        ("Llama", "llama", LLAMA, True),
    ],
    ids=[
        "olmoe",
        "olmoe, full mask",
        "olmoe, renormalised, grouped",
        "qwen2",
        "qwen2, tied",
        "llama",
        "llada as llama",
    ],
)
def test_logits_and_gradients_equal_those_of_transformers(tmp_path, name, layout, settings, full) -> None:
    other = theirs(name, settings)
    other.save_pretrained(tmp_path)
    if full:
        said = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(said | {"bidirectional": True}))
    ours = load(tmp_path)
    assert ours.config.causal == (not full)
    mask = torch.zeros(2, 1, 12, 12) if full else None
    expected = other(TOKENS_BL, attention_mask=mask).logits
    found, _ = ours(TOKENS_BL)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for logits_BLV in (expected, found):
        F.cross_entropy(logits_BLV.flatten(0, 1), TOKENS_BL.flatten(), reduction="sum").backward()
    assert_close_gradients(gradients_of_ours(ours, layout), gradients_of_theirs(other))


@pytest.mark.parametrize(("name", "settings"), [("Olmoe", OLMOE), ("Qwen2", QWEN2), ("Llama", LLAMA)])
def test_transformers_loads_what_we_write(tmp_path, name: str, settings: dict) -> None:
    theirs(name, settings).save_pretrained(tmp_path / "a")
    ours = load(tmp_path / "a")
    save(ours.config, ours.state_dict().__getitem__, tmp_path / "b", shard_bytes=20_000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    back = (
        getattr(transformers, f"{name}ForCausalLM").from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    )
    with torch.no_grad():
        torch.testing.assert_close(back(TOKENS_BL).logits, ours(TOKENS_BL)[0], atol=1e-4, rtol=0)


LLADA_MOE = ModelConfig(
    vocab_size=64, mask_id=60, eos_id=61, pad_id=61, hidden_size=24, num_layers=2, num_heads=3, head_dim=8,
    num_experts=6, top_k=2, expert_width=12, rope_theta=5e4, init_std=0.3,
)  # fmt: skip


def test_llada_moe_equals_an_independent_reference() -> None:
    ours = Denoiser(LLADA_MOE)
    initialise(ours, 0)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(len(parameter)))
    state = dict(ours.named_parameters())
    weights = {}
    for piece in pieces(LLADA_MOE, list(state), "llada_moe"):
        value = state[piece.ours].detach()
        weights[piece.theirs] = (value if piece.expert is None else value[piece.expert]).clone().requires_grad_()
    tokens = [3, 60, 17, 60, 5, 9]
    expected = reference_logits(weights, tokens, layers=2, heads=3, top_k=2, theta=5e4)
    found = ours(torch.tensor([tokens]))[0][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for logits in (expected, found):
        F.cross_entropy(logits, torch.tensor(tokens), reduction="sum").backward()
    unused = {name for name, value in weights.items() if value.grad is None}  # experts that no token reached
    ours_by_name = gradients_of_ours(ours, "llada_moe")
    assert all(not ours_by_name.pop(name).any() for name in unused)
    assert_close_gradients(ours_by_name, {name: value.grad for name, value in weights.items() if name not in unused})


def test_queries_and_keys_are_normalised_head_by_head_by_hand() -> None:
    """Two heads of two features: q = (3, 4 | 0.6, 0.8) -> rms 5/sqrt2 and 1/sqrt2, so both become (0.6, 0.8) sqrt2."""
    attention = Attention(ModelConfig(hidden_size=4, num_heads=2, head_dim=2, norm_eps=1e-12))
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.weight.copy_(torch.eye(4))
    x_BLD = torch.tensor([[[3.0, 4.0, 0.6, 0.8], [4.0, -3.0, 8.0, 6.0]]])
    rotation = (torch.ones(2, 2), torch.zeros(2, 2))  # no turn
    # scores / sqrt2: q1 = sqrt2 (.6, .8) both heads; k1 the same, k2 = sqrt2 (.8, -.6 | .8, .6)
    head_1 = torch.softmax(torch.tensor([2.0, 2 * (0.6 * 0.8 - 0.8 * 0.6)]) / math.sqrt(2), 0)
    head_2 = torch.softmax(torch.tensor([2.0, 2 * (0.6 * 0.8 + 0.8 * 0.6)]) / math.sqrt(2), 0)
    expected = [3 * head_1[0] + 4 * head_1[1], 4 * head_1[0] - 3 * head_1[1],
                0.6 * head_2[0] + 8 * head_2[1], 0.8 * head_2[0] + 6 * head_2[1]]  # fmt: skip
    torch.testing.assert_close(attention(x_BLD, rotation)[0, 0], torch.stack(expected))


def test_gates_are_the_softmax_as_it_is_by_hand() -> None:
    """Logits (ln 4, ln 3, ln 2, ln 1): probabilities .4 .3 .2 .1; the top two are .4 and .3, which sum to .7, not 1."""
    router = TopKRouter(ModelConfig(hidden_size=4, num_experts=4, top_k=2))
    with torch.no_grad():
        router.weight_ED.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]).log()[:, None] * torch.tensor([[1.0, 0, 0, 0]]))
    assert router(torch.tensor([[1.0, 0, 0, 0]])).gates_NK[0].tolist() == pytest.approx([0.4, 0.3])


def test_rope_turns_as_the_reference_does() -> None:
    cos, sin = rope_tables(5, 8, 5e4, torch.device("cpu"))
    assert cos[3, 1].item() == pytest.approx(math.cos(3 * 5e4 ** (-2 / 8)))
    assert sin[3, 5].item() == pytest.approx(math.sin(3 * 5e4 ** (-2 / 8)))


def test_a_model_without_norms_differs() -> None:
    """The parity above would miss a QK-norm that does nothing."""
    with_norm = Denoiser(LLADA_MOE)
    initialise(with_norm, 0)
    without = Denoiser(replace(LLADA_MOE, qk_norm="none"))
    without.load_state_dict(with_norm.state_dict(), strict=False)
    tokens_BL = torch.arange(10)[None]
    assert not torch.allclose(with_norm(tokens_BL)[0], without(tokens_BL)[0], atol=1e-2)
