import math

import pytest
import torch

from core.model.balance import (
    counts_by_group,
    dead_share,
    expert_counts,
    load_balancing_loss,
    max_violation,
    router_z_loss,
    utilisation_entropy,
)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2), (64, 8)])
def test_a_zero_router_gives_the_balanced_loss_and_the_squared_log_of_e(experts: int, top_k: int) -> None:
    logits_NE = torch.zeros(experts * 3, experts)
    experts_NK = (torch.arange(experts * 3)[:, None] + torch.arange(top_k)) % experts
    loss = load_balancing_loss(logits_NE.softmax(-1), expert_counts(experts_NK, experts))
    assert loss.item() == pytest.approx(1.0, abs=1e-6)
    assert router_z_loss(logits_NE).item() == pytest.approx(math.log(experts) ** 2, rel=1e-6)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2), (16, 4)])
def test_collapse_onto_the_same_experts_gives_e_over_k(experts: int, top_k: int) -> None:
    probs_NE = torch.zeros(10, experts)
    probs_NE[:, :top_k] = 1 / top_k
    experts_NK = torch.arange(top_k).expand(10, top_k)
    loss = load_balancing_loss(probs_NE, expert_counts(experts_NK, experts))
    assert loss.item() == pytest.approx(experts / top_k, rel=1e-6)


def test_the_loss_is_the_definition_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    probs_NE = torch.randn(6, 3, generator=generator).softmax(-1)
    experts_NK = probs_NE.topk(2).indices
    expected = 0.0
    for expert in range(3):
        share = sum(expert in row for row in experts_NK.tolist()) / (6 * 2)
        expected += 3 * share * probs_NE[:, expert].mean().item()
    assert load_balancing_loss(probs_NE, expert_counts(experts_NK, 3)).item() == pytest.approx(expected, rel=1e-6)


def test_its_gradient_pushes_the_overloaded_expert_down() -> None:
    logits_NE = torch.tensor([[2.0, 0.0, 0.0]] * 5, requires_grad=True)
    probs_NE = logits_NE.softmax(-1)
    load_balancing_loss(probs_NE, torch.tensor([5, 0, 0])).backward()
    assert (logits_NE.grad[:, 0] > 0).all() and (logits_NE.grad[:, 1:] < 0).all()


def test_load_statistics_of_hand_made_loads() -> None:
    counts_LE = torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0], [8, 8, 0, 0]])
    assert max_violation(counts_LE).tolist() == [0.0, 3.0, 1.0]
    assert utilisation_entropy(counts_LE).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert dead_share(counts_LE).tolist() == [0.0, 0.75, 0.5]


def test_counts_are_those_of_the_assignments() -> None:
    assert expert_counts(torch.tensor([[0, 3], [3, 1], [3, 0]]), 5).tolist() == [2, 1, 0, 3, 0]


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_the_loss_is_the_same_however_the_batch_is_split(ranks: int) -> None:
    """Counts are summed over ranks before the product; a mean of the ranks' own losses would be another number."""
    generator = torch.Generator().manual_seed(1)
    probs_NE = (2 * torch.randn(60, 8, generator=generator)).softmax(-1)
    experts_NK = probs_NE.topk(2).indices
    whole = load_balancing_loss(probs_NE, expert_counts(experts_NK, 8))
    counts_E = sum(expert_counts(part, 8) for part in experts_NK.chunk(ranks))
    shared = [load_balancing_loss(part, counts_E) for part in probs_NE.chunk(ranks)]
    torch.testing.assert_close(torch.stack(shared).mean(), whole)
    parts = zip(probs_NE.chunk(ranks), experts_NK.chunk(ranks), strict=True)
    apart = [load_balancing_loss(probs, expert_counts(chosen, 8)) for probs, chosen in parts]
    assert abs(torch.stack(apart).mean() - whole) > 1e-3
    z_loss = torch.stack([router_z_loss(part.log()) for part in probs_NE.chunk(ranks)]).mean()
    torch.testing.assert_close(z_loss, router_z_loss(probs_NE.log()))


def test_assignments_are_counted_by_group() -> None:
    experts_NK = torch.tensor([[0, 2], [1, -1], [2, 0], [1, 2]])
    counts = counts_by_group(experts_NK, 3, torch.tensor([1, 1, 0, 2]), 2)
    assert counts.tolist() == [[1, 0, 1], [1, 1, 1]]  # the last token is of a group beyond
