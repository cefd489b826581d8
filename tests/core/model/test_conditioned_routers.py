"""The rules that are told a timestep or the mask ratio, that choose tokens, or that learn nothing: by known answers."""

from dataclasses import replace

import pytest
import torch

from core.config.loading import build
from core.config.model import ROUTERS, ModelConfig, RouterConfig
from core.errors import UserError
from core.model.balance import expert_counts
from core.model.moe import MoE
from core.model.routers.expert_choice import ECDLMRouter
from core.model.routing import Conditions, TopKRouter, hashed, share_of_range, time_features
from core.model.transformer import Denoiser
from core.registry import load
from tests.core.model.test_moe import assert_as_the_loop, take_path
from tests.core.networks import network_of

B, L, E, K, D = 3, 12, 6, 2, 8


def config(kind: str, **router) -> ModelConfig:
    return ModelConfig(hidden_size=D, num_experts=E, top_k=K, expert_width=8, router=RouterConfig(kind=kind, **router))


def conditions(timestep=(0.1, 0.5, 0.95), ratio=(0.1, 0.5, 0.95)) -> Conditions:
    generator = torch.Generator().manual_seed(3)
    return Conditions(
        torch.tensor(timestep), torch.tensor(ratio), torch.randint(0, 50, (B, L), generator=generator),
        torch.randn(B * L, D, generator=generator),
    )  # fmt: skip


def made(kind: str, **router):
    """A router with random weights, zero where it starts at zero."""
    rule = load(ROUTERS[kind].implementation)(config(kind, **router))
    generator = torch.Generator().manual_seed(5)
    for parameter in rule.parameters():
        if not getattr(parameter, "starts_at_zero", False):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return rule


@pytest.fixture
def x_ND() -> torch.Tensor:
    return torch.randn(B * L, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["additive", "film", "bin_bias"])
def test_rules_that_add_a_timestep_start_as_token_choice(kind: str, x_ND: torch.Tensor) -> None:
    rule, plain = made(kind), TopKRouter(config("topk"))
    plain.weight_ED.data.copy_(rule.weight_ED)
    for expected, found in zip(plain(x_ND), rule(x_ND, conditions()), strict=True):
        assert expected is found is None or torch.equal(expected, found)


@pytest.mark.parametrize("kind", [kind.name for kind in ROUTERS.entries() if kind.sees_timestep])
def test_a_told_rule_follows_its_timestep_and_learns_from_it(kind: str, x_ND: torch.Tensor) -> None:
    rule = made(kind)
    for parameter in rule.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    one, other = rule(x_ND, conditions()), rule(x_ND, conditions(timestep=(0.1, 0.5, 0.15)))
    same = (one.logits_NE == other.logits_NE).view(B, L, E).all(-1).all(-1)
    assert same.tolist() == [True, True, False]  # each sequence by its own timestep
    one.logits_NE.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in rule.parameters())


def test_bins_split_the_unit_interval() -> None:
    rule = made("bin_bias", time_bins=4)
    rule.weight_ED.data.zero_()
    rule.bin_TE.data.copy_(torch.arange(4.0)[:, None].expand(4, E))
    given = Conditions(torch.tensor([1e-6, 0.25, 0.26, 0.5, 0.75, 1.0]), torch.ones(6), torch.zeros(6, 1).long())
    assert rule.logits(torch.zeros(6, D), given)[:, 0].tolist() == [0, 0, 1, 1, 2, 3]


def test_timestep_only_ignores_the_token(x_ND: torch.Tensor) -> None:
    logits = made("timestep_only")(x_ND, conditions()).logits_NE.view(B, L, E)
    assert (logits == logits[:, :1]).all()
    weight = made("timestep_only").time_EF
    expected = torch.nn.functional.silu(time_features(torch.tensor([0.5]), 64)) @ weight.T
    torch.testing.assert_close(logits[1, 0], expected[0])


def test_unmodulated_reads_the_residual_stream_without_a_learned_scale(x_ND: torch.Tensor) -> None:
    rule, given = made("unmodulated"), conditions()
    first = rule(x_ND, given).logits_NE
    assert torch.equal(first, rule(x_ND * 3 + 1, given).logits_NE)  # the experts' input doesn't matter
    larger = rule(x_ND, given._replace(residual_ND=given.residual_ND * 7)).logits_NE
    torch.testing.assert_close(first, larger, rtol=1e-3, atol=1e-3)  # but for the epsilon in the norm


def test_adaptive_k_gives_more_experts_where_less_is_masked_and_k_on_average(x_ND: torch.Tensor) -> None:
    routing = made("adaptive_k")(x_ND, conditions(ratio=(0.1, 0.5, 0.95)))
    assert (routing.experts_NK >= 0).sum(1).view(B, L)[:, 0].tolist() == [3, 2, 1]
    assert torch.equal(routing.gates_NK == 0, routing.experts_NK < 0)
    linear = made("adaptive_k", k_schedule="linear")(x_ND, conditions(ratio=(0.1, 0.5, 0.95)))
    assert (linear.experts_NK >= 0).sum(1).view(B, L)[:, 0].tolist() == [1, 2, 3]
    many = (torch.arange(3000) + 0.5) / 3000
    given = Conditions(many, many, torch.zeros(3000, 1).long())
    assert (made("adaptive_k").choose(*2 * [torch.rand(3000, E)], given)[1] >= 0).sum() == 3000 * K
    for schedule in ("linear", "linear_reverse", "constant"):
        assert (2 * share_of_range(many, schedule)).mean().item() == pytest.approx(1.0)


def test_each_expert_chooses_its_best_tokens_of_every_sequence(x_ND: torch.Tensor) -> None:
    routing = made("expert_choice")(x_ND, conditions())
    capacity = L * K // E
    chosen_BLE = (routing.experts_NK >= 0).view(B, L, E)
    assert (chosen_BLE.sum(1) == capacity).all()  # every expert is full, whatever the tokens are
    probs_BLE = routing.probs_NE.view(B, L, E)
    worst_taken = probs_BLE.masked_fill(~chosen_BLE, 2).amin(1)
    best_left = probs_BLE.masked_fill(chosen_BLE, -1).amax(1)
    assert (worst_taken >= best_left).all()
    assert torch.equal(routing.gates_NK, routing.probs_NE * chosen_BLE.view(-1, E))


@pytest.mark.parametrize("kind", ROUTERS)
def test_tokens_routed_by_the_rest_of_their_sequence_are_of_the_kinds_that_say_so(
    kind: str, x_ND: torch.Tensor
) -> None:
    rule, given = made(kind), conditions()
    states_ND, residual_ND, tokens_BL = x_ND.clone(), given.residual_ND.clone(), given.tokens_BL.clone()
    for values_ND in (states_ND, residual_ND):
        values_ND[L // 2 : L] *= -3
    tokens_BL[0, L // 2 : L] += 1
    changed = given._replace(tokens_BL=tokens_BL, residual_ND=residual_ND)
    one, other = (rule(*seen).experts_NK[: L // 2] for seen in ((x_ND, given), (states_ND, changed)))
    follows = not torch.equal(one, other)
    assert follows == ROUTERS[kind].sees_sequence


@pytest.mark.parametrize("kind", ROUTERS)
def test_what_else_is_said_of_a_kind_is_what_it_does(kind: str, x_ND: torch.Tensor) -> None:
    schedule = {"k_schedule": "linear"} if ROUTERS[kind].follows_ratio else {}
    rule, given = made(kind, **schedule), conditions()
    for parameter in rule.parameters():  # where they start at zero too
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    plain = rule(x_ND, given)
    told = rule(x_ND, given._replace(timestep_B=given.timestep_B.flip(0)))
    assert (not torch.equal(plain.logits_NE, told.logits_NE)) == ROUTERS[kind].sees_timestep
    paced = rule(x_ND, given._replace(ratio_B=given.ratio_B.flip(0)))
    assert (not torch.equal(plain.experts_NK, paced.experts_NK)) == (ROUTERS[kind].follows_ratio)
    taken_BE = torch.stack([expert_counts(one, E, ragged=True) for one in plain.experts_NK.chunk(B)])
    alike = bool((taken_BE == taken_BE[:, :1]).all())  # each expert takes as many tokens of a sequence as the others
    assert alike == (ROUTERS[kind].experts_choose or ROUTERS[kind].all_experts)


def test_chance_is_a_packed_texts_own() -> None:
    rule, generator = made("random"), torch.Generator().manual_seed(0)
    segments_BL = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3, [1] * 8 + [2] * 4])
    tokens_BL = torch.randint(0, 50, segments_BL.shape, generator=generator)
    told_B = torch.rand(2, generator=generator)
    packed = rule(torch.zeros(24, D), Conditions(told_B, told_B, tokens_BL, segments_BL=segments_BL)).experts_NK
    for row, start, end in ((0, 0, 5), (0, 5, 9), (1, 0, 8), (1, 8, 12)):
        alone = Conditions(told_B[:1], told_B[:1], tokens_BL[row : row + 1, start:end])
        assert torch.equal(rule(torch.zeros(end - start, D), alone).experts_NK, packed.view(2, 12, K)[row, start:end])


def test_expert_choice_sees_its_own_sequence_alone(x_ND: torch.Tensor) -> None:
    rule, given = made("expert_choice"), conditions()
    changed = x_ND.clone()
    changed[L : 2 * L] = changed[L : 2 * L].flip(0) * 2
    one, other = rule(x_ND, given).experts_NK.view(B, L, E), rule(changed, given).experts_NK.view(B, L, E)
    assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2]) and not torch.equal(one[1], other[1])


def test_capacity_may_follow_the_mask_ratio(x_ND: torch.Tensor) -> None:
    routing = made("expert_choice", k_schedule="linear_reverse")(x_ND, conditions(ratio=(0.25, 0.5, 1.0)))
    per_expert = (routing.experts_NK >= 0).view(B, L, E).sum(1)
    assert per_expert.tolist() == [[6] * E, [4] * E, [1] * E]  # 2 (1 - r) L K / E, and never none


def test_controls_learn_nothing_and_know_what_they_say(x_ND: torch.Tensor) -> None:
    given = conditions()
    for kind in ("hash", "random"):
        rule = made(kind)
        assert not list(rule.parameters())
        routing = rule(x_ND, given)
        assert torch.equal(routing.experts_NK, rule(x_ND * 2, given).experts_NK)  # the same again
        assert (routing.experts_NK[:, 0] != routing.experts_NK[:, 1]).all() and (routing.gates_NK == 1 / K).all()
    alike = given._replace(tokens_BL=torch.full((B, L), 7))
    assert len(made("hash")(x_ND, alike).experts_NK.unique(dim=0)) == 1  # one id, one set of experts
    places = made("random")(x_ND, alike).experts_NK.view(B, L, K)
    assert len(places[0].unique(dim=0)) > 3
    other = given.tokens_BL.clone()
    other[0, 0] += 1
    moved = made("random")(x_ND, given._replace(tokens_BL=other)).experts_NK.view(B, L, K)
    before = made("random")(x_ND, given).experts_NK.view(B, L, K)
    assert torch.equal(moved[1:], before[1:]) and (moved[0] != before[0]).any(-1).sum() > L // 2
    soft = made("soft")(x_ND, given)
    assert torch.equal(soft.gates_NK, soft.probs_NE) and soft.experts_NK.shape == (B * L, E)


def test_random_experts_are_even() -> None:
    tokens_BL = torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0))
    given = Conditions(torch.ones(64), torch.ones(64), tokens_BL)
    counts = expert_counts(made("random")(torch.zeros(4096, D), given).experts_NK, E)
    expected = 4096 * K / E
    assert ((counts - expected).square() / expected).sum() < 20.5  # chi-squared, 5 degrees of freedom, 0.1 %


def test_the_hash_is_splitmix64() -> None:
    def exact(key: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            key = ((key ^ (key >> shift)) * factor) % 2**64
        return key ^ (key >> 31)

    keys = [0, 1, 2, 12345678901234567, -5]
    found = [value % 2**64 for value in hashed(torch.tensor(keys)).tolist()]
    assert found == [exact(key % 2**64) for key in keys]


def published_ec_dlm(logits_NE, ratio, k_mean: int, shared: int, pre_softmax: bool = False):
    """EC-DLM's choice and gates, token by token: k steps from 8 to 32 are scaled to a mean of `k_mean`."""
    gates_NE = torch.zeros_like(logits_NE)
    for b in range(B):
        rows = logits_NE[b * L : (b + 1) * L]
        k = 20 if pre_softmax else min(32, max(8, round(8 + (32 - 8) * (1 - ratio[b]))))
        capacity = max(1, L * k_mean * k // (20 * E))
        ranks = rows.softmax(-1) if pre_softmax else rows
        took = [sorted(range(L), key=lambda i: -ranks[i, e].item())[:capacity] for e in range(E)]
        for i in range(L):
            mine = [e for e in range(E) if i in took[e]]
            if pre_softmax:
                gates_NE[b * L + i, mine] = ranks[i, mine]
            elif mine:
                gates_NE[b * L + i, mine] = rows[i, mine].softmax(-1) * factor(len(mine), shared)
    return gates_NE


def factor(routed: int, shared: int) -> float:
    """By a simulation of each number of routed experts by itself, as EC-DLM's code does it."""
    if not shared:
        return 1.0
    logits = torch.randn(4000, routed, generator=torch.Generator().manual_seed(routed), dtype=torch.float64)
    return float((shared**0.5 / logits.softmax(-1).norm(dim=-1)).mean())


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("ratio", [(0.1, 0.5, 0.9), (0.0, 0.33, 1.0)])
def test_ec_dlm_is_the_published_rule(shared: int, ratio: tuple[float, ...], x_ND: torch.Tensor) -> None:
    rule = ECDLMRouter(replace(config("ec_dlm"), shared_expert_width=8 * shared))
    rule.weight_ED.data.copy_(torch.randn(E, D, generator=torch.Generator().manual_seed(5)))
    routing = rule(x_ND, conditions(ratio=ratio))
    expected = published_ec_dlm(routing.logits_NE, ratio, K, shared)
    assert torch.equal(routing.experts_NK >= 0, expected > 0)
    torch.testing.assert_close(routing.gates_NK, expected, rtol=0.02 if shared else 1e-5, atol=1e-6)


def test_ec_dlm_with_the_softmax_first_is_expert_choice(x_ND: torch.Tensor) -> None:
    routing = made("expert_choice")(x_ND, conditions())
    expected = published_ec_dlm(routing.logits_NE, (0.1, 0.5, 0.9), K, 0, pre_softmax=True)
    torch.testing.assert_close(routing.gates_NK, expected)


def test_ec_dlm_takes_24_16_and_8_of_64_tokens() -> None:
    shape = ModelConfig(hidden_size=D, num_experts=8, top_k=2, expert_width=8, router=RouterConfig(kind="ec_dlm"))
    rule = ECDLMRouter(shape)
    rule.weight_ED.data.copy_(torch.randn(8, D, generator=torch.Generator().manual_seed(5)))
    x_ND = torch.randn(3 * 64, D, generator=torch.Generator().manual_seed(1))
    ratio_B = torch.tensor([0.1, 0.5, 0.9])
    chosen_NE = rule(x_ND, Conditions(ratio_B, ratio_B, torch.zeros(3, 64).long())).experts_NK >= 0
    assert chosen_NE.view(3, 64, 8).sum(1).tolist() == [[24] * 8, [16] * 8, [8] * 8]


def test_ec_dlms_factors_stay_exact_wherever_the_model_goes(x_ND: torch.Tensor) -> None:
    shape = replace(config("ec_dlm"), shared_expert_width=16)
    plain = ECDLMRouter(shape)
    with torch.device("meta"):
        moved = ECDLMRouter(shape)
    moved = moved.to(torch.bfloat16).to_empty(device="cpu")
    assert torch.equal(moved.factors_K, plain.factors_K) and plain.factors_K.dtype == torch.float32
    assert set(plain.state_dict()) == {"weight_ED"}


def test_ec_dlm_learns_where_no_expert_took_a_token(x_ND: torch.Tensor) -> None:
    rule = made("ec_dlm")
    routing = rule(x_ND, conditions(ratio=(1.0, 1.0, 1.0)))
    assert ((routing.experts_NK >= 0).sum(1) == 0).any()
    routing.gates_NK.square().sum().backward()
    assert rule.weight_ED.grad.isfinite().all() and rule.weight_ED.grad.any()


def test_ec_dlm_gates_are_one_per_token_and_follow_the_scores_that_are_asked_for(x_ND: torch.Tensor) -> None:
    for scores in ("softmax", "sigmoid"):
        routing = made("ec_dlm", scores=scores)(x_ND, conditions())
        chosen_NE = routing.experts_NK >= 0
        weights_NE = (routing.logits_NE.exp() if scores == "softmax" else routing.logits_NE.sigmoid()) * chosen_NE
        expected = weights_NE / weights_NE.sum(-1, keepdim=True).clamp(min=1e-30)
        torch.testing.assert_close(routing.gates_NK, expected)


def test_schedules_share_the_published_means_and_ends() -> None:
    ends = torch.tensor([0.0, 0.5, 1.0])
    expected = {"linear": [0, 0.5, 1], "cosine": [0, 0.5, 1], "gaussian": [0, 1, 0]}
    many = (torch.arange(3000) + 0.5) / 3000
    for name, values in expected.items():
        torch.testing.assert_close(share_of_range(ends, name), torch.tensor(values).float(), atol=1e-6, rtol=0)
        torch.testing.assert_close(
            share_of_range(ends, f"{name}_reverse"), 1 - torch.tensor(values).float(), atol=1e-6, rtol=0
        )
        assert share_of_range(many, name).mean().item() == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("path", ["cpu, one part", "cpu, many parts", "cpu, filled up", "accelerator"])
@pytest.mark.parametrize("kind", ["adaptive_k", "expert_choice", "ec_dlm", "soft", "topk with filling"])
def test_fast_equals_slow_where_tokens_have_unlike_numbers_of_experts(
    monkeypatch: pytest.MonkeyPatch, kind: str, path: str, x_ND: torch.Tensor
) -> None:
    take_path(path, monkeypatch, D * 4 * 5)
    layer, given = MoE(config(kind.removesuffix(" with filling"))), conditions()
    if kind.endswith("filling"):
        given = given._replace(real_N=torch.arange(B * L) % L < 9)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) * 0.5)
    x_ND.requires_grad_()
    fast, routing, counts_E = layer(x_ND, given)
    assert given.real_N is None or not fast[~given.real_N].any()
    assert counts_E.tolist() == [(routing.experts_NK == expert).sum() for expert in range(E)]
    assert_as_the_loop(layer, fast, routing, x_ND, 1e-5)


def test_parameters_that_start_at_zero_do_and_others_stay_as_in_token_choice() -> None:
    models = {kind: network_of(build({"model.router.kind": kind}).model, 3) for kind in ("topk", "film")}
    assert all((moe.router.film_CF == 0).all() for moe in models["film"].mixtures())
    film = models["film"].state_dict()
    assert all(torch.equal(value, film[name]) for name, value in models["topk"].state_dict().items())


def test_a_sampler_tells_routers_its_own_mask_ratio() -> None:
    model = Denoiser(build({"model.router.kind": "additive"}).model)
    tokens_BL = torch.tensor([[1, 256, 256, 2], [256, 256, 256, 256]])
    assert model.conditions(tokens_BL).timestep_B.tolist() == [0.5, 1.0]
    constant = Denoiser(build({"model.router.kind": "additive", "model.router.sees": "constant"}).model)
    assert constant.conditions(tokens_BL).timestep_B.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.router.sees": "shuffled"}, "sees=shuffled means nothing to model.router.kind=topk"),
        ({"model.router.k_schedule": "linear"}, "k_schedule=linear means nothing to model.router.kind=topk"),
        ({"model.router.kind": "adaptive_k", "model.router.k_schedule": "constant"}, "is model.router.kind=topk"),
        ({"model.router.kind": "adaptive_k", "model.top_k": 8}, "up to 2 k - 1 = 15 experts .* there are 8"),
        ({"model.router.kind": "ec_dlm", "model.router.renormalise": True}, "renormalise=true would undo"),
        (
            {"model.router.kind": "ec_dlm", "model.shared_expert_width": 100},
            "shared_expert_width=100 must be a multiple of an expert's width, 64",
        ),
        ({"model.router.kind": "additive", "model.router.time_features": 3}, "time_features=3 must be even"),
        ({"model.router.kind": "bin_bias", "model.router.time_bins": 0}, "time_bins must be at least 1"),
        (
            {"model.router.kind": "expert_choice", "model.causal": True, "objective.kind": "autoregressive"},
            "model.router.kind=expert_choice depends on .* tokens to come",
        ),
    ],
)
def test_what_a_rule_cannot_do_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(changes)


@pytest.mark.parametrize("kind", ["expert_choice", "ec_dlm"])
def test_experts_choose_by_place_among_tokens_that_differ_by_rounding_alone(kind: str) -> None:
    rule, x_1D = made(kind, k_schedule="constant"), torch.randn(1, D, generator=torch.Generator().manual_seed(2))
    given = Conditions(torch.ones(1), torch.ones(1), torch.zeros(1, L).long())
    noise_LD = 1 + 1e-7 * torch.randn(L, D, generator=torch.Generator().manual_seed(3))
    chosen_LE = rule(x_1D * noise_LD, given).experts_NK >= 0
    capacity = L * K // E
    assert chosen_LE[:capacity].all() and not chosen_LE[capacity:].any()
