from dataclasses import replace

import pytest
import torch

from core.config.model import ModelConfig, RouterConfig
from core.model.attention import Attention, rope_tables, rotate
from tests.core.model.test_shapes import BASE, VARIANTS
from tests.core.networks import network_of

SMALL = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, head_dim=16, num_experts=4, top_k=2, expert_width=16)


def tokens(batch: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(259, (batch, length), generator=torch.Generator().manual_seed(0))


def test_every_position_sees_every_other() -> None:
    made, before = network_of(SMALL), tokens()
    after = before.clone()
    after[:, -1] = (after[:, -1] + 1) % 259
    change = (made(before)[0] - made(after)[0]).abs().amax((0, 2))
    assert (change > 0).all()


def test_sequences_of_a_batch_are_on_their_own() -> None:
    made, both = network_of(SMALL), tokens()
    torch.testing.assert_close(made(both)[0][:1], made(both[:1])[0], rtol=1e-4, atol=1e-5)


def test_logits_of_wanted_positions_only_are_those_of_all() -> None:
    made, batch = network_of(SMALL), tokens()
    wanted_BL = torch.rand(batch.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    torch.testing.assert_close(made(batch, wanted_BL)[0], made(batch)[0][wanted_BL])


def test_rotary_scores_depend_on_distance_alone() -> None:
    table = rope_tables(12, 16, 1e4, torch.device("cpu"))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(v.expand(1, 1, 12, 16), table)[0, 0] for v in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores[0, 0].item() == pytest.approx((q @ k).item(), rel=1e-5)


def test_attention_is_the_formula_written_out() -> None:
    made = Attention(SMALL)
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    x_BLD = torch.randn(1, 6, 32, generator=generator)
    cos, sin = rope_tables(6, 16, 1e4, torch.device("cpu"))
    heads = []
    for head in range(2):
        rows = slice(16 * head, 16 * (head + 1))

        def project(linear, norm, rows=rows):
            y = x_BLD[0] @ linear.weight[rows].T
            if norm is None:
                return y
            y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight  # over this head's features only
            return y * cos + torch.cat([-y[:, 8:], y[:, :8]], -1) * sin

        q, k, v = (
            project(made.q_proj, made.q_norm),
            project(made.k_proj, made.k_norm),
            project(made.v_proj, None),
        )
        heads.append((q @ k.T / 4).softmax(-1) @ v)
    expected = torch.cat(heads, -1) @ made.o_proj.weight.T
    torch.testing.assert_close(made(x_BLD, (cos, sin))[0], expected, rtol=1e-4, atol=1e-5)


def test_arms_start_from_the_same_weights_wherever_shapes_agree() -> None:
    control, arm = network_of(SMALL), network_of(replace(SMALL, num_experts=8))
    shared = 0
    for (name, a), (_, b) in zip(control.named_parameters(), arm.named_parameters(), strict=True):
        if a.shape == b.shape:
            assert torch.equal(a, b), name
            shared += 1
    assert shared > 10
    other = network_of(SMALL, 1)
    assert not torch.equal(control.head.weight, other.head.weight)


def test_initial_scale() -> None:
    made = network_of(SMALL)
    assert made.layers[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert made.layers[0].moe.experts.down_EDW.std().item() == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2 * 2)
    assert (made.norm.weight == 1).all()


LEARNING = VARIANTS | {
    "sigmoid": replace(BASE, router=RouterConfig(scores="sigmoid", renormalise=True)),
    "bias balanced": replace(BASE, router=RouterConfig(kind="bias_balanced")),
}


@pytest.mark.parametrize("config", LEARNING.values(), ids=LEARNING)
def test_every_option_gives_a_model_whose_every_parameter_learns(config: ModelConfig) -> None:
    model = network_of(config)
    tokens_BL = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    logits, routings = model(tokens_BL)
    assert logits.shape == (4, 16, config.vocab_size)
    assert len(routings) == len(config.sparse_layers)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BL.flatten()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_causal_models_see_nothing_of_what_follows() -> None:
    for causal in (True, False):
        model = network_of(ModelConfig(hidden_size=32, num_layers=2, head_dim=8, causal=causal))
        tokens_BL = torch.arange(20)[None]
        changed_BL = tokens_BL.clone()
        changed_BL[0, 15] = 99
        same = torch.isclose(model(tokens_BL)[0], model(changed_BL)[0], atol=1e-6).all(-1)[0]
        assert same[:15].all() == causal and not same[15:].any()


def test_grouped_queries_equal_repeated_key_and_value_heads() -> None:
    torch.manual_seed(0)
    grouped = Attention(ModelConfig(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8))
    full = Attention(ModelConfig(hidden_size=32, num_heads=4, head_dim=8))
    state = dict(grouped.state_dict())
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x_BLD, rotation = torch.randn(2, 10, 32), rope_tables(10, 8, 1e4, torch.device("cpu"))
    torch.testing.assert_close(grouped(x_BLD, rotation), full(x_BLD, rotation))
