import pytest
import torch

from core.config import ModelConfig, RouterConfig
from core.model.routers import ROUTERS, TopKRouter


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


def test_every_kind_of_the_config_has_a_class() -> None:
    from typing import get_args

    from core.config import RouterKind

    assert set(ROUTERS) == set(get_args(RouterKind))
