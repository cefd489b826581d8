import math

import pytest
import torch

from core.config.model import ROUTERS, ModelConfig, RouterConfig
from core.model.balance import expert_counts, max_violation
from core.model.routers.token_choice import BiasBalancedRouter
from core.model.routing import Router, TopKRouter
from core.registry import load


def router(weight_ED: torch.Tensor, top_k: int, *, renormalise: bool = False) -> TopKRouter:
    experts, hidden = weight_ED.shape
    config = ModelConfig(
        hidden_size=hidden, num_experts=experts, top_k=top_k, router=RouterConfig(renormalise=renormalise)
    )
    made = TopKRouter(config)
    made.weight_ED.data.copy_(weight_ED)
    return made


def test_gates_are_the_probabilities_as_they_are() -> None:
    made = router(torch.tensor([[0.0] * 4, [1.0, 0, 0, 0], [2.0, 0, 0, 0]]), top_k=2)
    routing = made(torch.tensor([[1.0, 0, 0, 0]]))
    exact = torch.tensor([0.0, 1.0, 2.0]).exp() / torch.tensor([0.0, 1.0, 2.0]).exp().sum()
    assert routing.logits_NE.tolist() == [[0.0, 1.0, 2.0]]
    torch.testing.assert_close(routing.probs_NE[0], exact)
    assert routing.experts_NK.tolist() == [[2, 1]]
    torch.testing.assert_close(routing.gates_NK[0], exact[[2, 1]])
    assert routing.gates_NK.sum().item() == pytest.approx(0.9099695, rel=1e-5)  # below 1: not renormalised


def test_renormalised_gates_sum_to_one() -> None:
    made = router(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), top_k=3, renormalise=True)
    gates_NK = made(torch.randn(5, 4, generator=torch.Generator().manual_seed(1))).gates_NK
    torch.testing.assert_close(gates_NK.sum(-1), torch.ones(5))


def test_routing_is_fp32_under_autocast() -> None:
    made = router(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), top_k=2)
    x_ND = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = made(x_ND)
    torch.testing.assert_close(routing.probs_NE, made(x_ND).probs_NE, rtol=0, atol=0)


def test_the_gate_carries_gradient_to_the_router() -> None:
    made = router(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), top_k=2)
    made(torch.ones(1, 4)).gates_NK[0, 0].backward()
    assert made.weight_ED.grad.abs().sum() > 0


def test_every_kind_has_a_class() -> None:
    assert all(issubclass(load(kind.implementation), Router) for kind in ROUTERS.entries())


def test_sigmoid_scores_are_gates_and_probs_sum_to_one() -> None:
    router = TopKRouter(ModelConfig(hidden_size=4, num_experts=3, top_k=2, router=RouterConfig(scores="sigmoid")))
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(3, 4))
    routing = router(torch.tensor([[0.0, 1.0, -1.0, 5.0]]))
    scores = torch.tensor([0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    assert routing.experts_NK.tolist() == [[1, 0]]
    torch.testing.assert_close(routing.gates_NK[0], scores[[1, 0]])
    torch.testing.assert_close(routing.probs_NE[0], scores / scores.sum())


def test_gate_scale_multiplies_renormalised_gates() -> None:
    settings = RouterConfig(renormalise=True, gate_scale=2.5)
    router = TopKRouter(ModelConfig(hidden_size=8, num_experts=4, top_k=3, router=settings))
    torch.nn.init.normal_(router.weight_ED)
    assert router(torch.randn(5, 8)).gates_NK.sum(-1).tolist() == pytest.approx([2.5] * 5)


def test_a_bias_moves_the_choice_and_not_the_gate() -> None:
    config = ModelConfig(hidden_size=4, num_experts=4, top_k=1, router=RouterConfig(kind="bias_balanced"))
    router = BiasBalancedRouter(config)
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(4))
    x_ND = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    before = router(x_ND)
    router.bias_E.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    after = router(x_ND)
    assert (before.experts_NK.item(), after.experts_NK.item()) == (0, 1)
    assert after.gates_NK.item() == pytest.approx(1 / (math.exp(2) + 3))
    torch.testing.assert_close(after.probs_NE, before.probs_NE)


def test_a_bias_grows_where_load_is_low_and_shrinks_where_it_is_high() -> None:
    config = ModelConfig(num_experts=4, router=RouterConfig(kind="bias_balanced", bias_update_rate=0.5))
    router = BiasBalancedRouter(config)
    router.rebalance(torch.tensor([7, 0, 3, 2]))  # mean 3
    assert router.bias_E.tolist() == [-0.5, 0.5, 0.0, 0.5]


def test_loss_free_balancing_balances() -> None:
    torch.manual_seed(0)
    settings = RouterConfig(kind="bias_balanced", bias_update_rate=1e-3)
    router = BiasBalancedRouter(ModelConfig(hidden_size=16, num_experts=8, top_k=2, router=settings))
    torch.nn.init.normal_(router.weight_ED, std=0.2)
    x_ND = torch.randn(512, 16) + 0.5
    first = max_violation(expert_counts(router(x_ND).experts_NK, 8)[None]).item()
    for _ in range(300):
        router.rebalance(expert_counts(router(x_ND).experts_NK, 8))
    last = max_violation(expert_counts(router(x_ND).experts_NK, 8)[None]).item()
    assert last < 0.1 < 0.4 < first
