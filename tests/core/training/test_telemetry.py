import pytest
import torch

from core.config.loading import build
from core.diffusion.masking import Masking
from core.model.balance import expert_counts
from core.model.routing import Routing
from core.model.transformer import LayerRouting
from core.training.run import train
from core.training.telemetry import RoutingMemory, observe, saturated
from tests.core.training.test_run import QUICK

EXPERTS = 4


def layer(experts_NK: list[list[int]], probs_NE: torch.Tensor | None = None) -> LayerRouting:
    chosen = torch.tensor(experts_NK)
    probs_NE = torch.full((len(chosen), EXPERTS), 0.25) if probs_NE is None else probs_NE
    counts_E = expert_counts(chosen, EXPERTS, ragged=True)
    return LayerRouting(Routing(probs_NE, probs_NE, torch.ones_like(chosen, dtype=torch.float32), chosen), counts_E)


def masking(masked: list[list[bool]], timesteps: list[float]) -> Masking:
    ones = torch.ones(len(timesteps))
    return Masking(torch.tensor(masked), torch.tensor(timesteps), ones, ones)


def test_loads_are_counted_by_timestep_and_masked_status() -> None:
    seen = observe([layer([[0, 1], [0, 2], [3, -1], [0, 1]])], masking([[True, False], [True, True]], [0.05, 1.0]))
    load_TME = seen["load_STME"][0]
    assert load_TME[0, 1].tolist() == [1, 1, 0, 0]  # t = 0.05, masked: token 0
    assert load_TME[0, 0].tolist() == [1, 0, 1, 0]  # visible: token 1
    assert load_TME[9, 1].tolist() == [1, 1, 0, 1]  # t = 1: tokens 2 (one expert alone) and 3
    assert load_TME.sum() == 7
    assert seen["pairs_SEE"][0].tolist() == [[3, 2, 1, 0], [2, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert seen["violation_S"].item() == pytest.approx(3 / 1.75 - 1)


def test_a_run_remembers_shares_coactivation_and_saturation() -> None:
    memory, mask = RoutingMemory(), masking([[True, False]], [0.5])
    one = {"nelbo_B": torch.zeros(1)}
    first = one | observe([layer([[0, 1], [2, 3]], torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4]))], mask)
    metrics = memory.add(10, [first], [first])
    assert metrics["router/top1_probability"] == pytest.approx((0.7 + 0.25) / 2)
    last = one | observe([layer([[0, 2], [2, 3]])], mask)
    memory.add(20, [last, last], [last])
    told = memory.to_dict()
    assert told["step"] == [10, 20]
    assert told["saturation"] == [[0.75], [1.0]]  # three of the final four choices were made at step 10
    assert told["load_by_timestep"][0][4][1] == [0.5, 0.0, 0.5, 0.0]
    assert told["load_by_timestep"][0][0] == [[0.0] * 4, [0.0] * 4]  # no token was of that timestep
    assert told["coactivation"][0][0] == [1.0, 0.0, 1.0, 0.0]  # of expert 0's tokens all reach 2
    assert told["coactivation"][0][2] == [0.5, 0.0, 1.0, 0.5]


def test_choices_are_compared_in_the_batchs_order_whichever_ranks_made_them() -> None:
    def rank(*experts: int) -> dict[str, torch.Tensor]:
        chosen = [[expert, expert] for expert in experts]  # a sequence of one token each
        seen = observe([layer(chosen)], masking([[True]] * len(experts), [0.5] * len(experts)))
        return seen | {"nelbo_B": torch.zeros(len(experts))}

    memory, alone = RoutingMemory(), rank(0, 1, 2, 3, 0)
    memory.add(1, [alone], [alone])
    two = [rank(0, 2, 0), rank(1, 3)]
    memory.add(2, two, two)
    assert memory.to_dict()["saturation"] == [[1.0], [1.0]]


def test_co_activation_counts_every_token_under_autocast() -> None:
    many = [[0, 1]] * 897 + [[2, 3]] * 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = observe([layer(many)], masking([[True] * 997], [0.5]))
    assert seen["pairs_SEE"][0, 0].tolist() == [897, 897, 0, 0]


def test_saturation_counts_experts_not_places() -> None:
    final, before = torch.tensor([[[1, 2], [3, -1]]]), torch.tensor([[[2, 1], [0, -1]]])
    assert saturated(before, final).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["topk", "adaptive_k", "expert_choice"])
def test_a_record_has_the_routing_of_every_layer(kind: str, tmp_path) -> None:
    record = train(build(QUICK, {"model.router.kind": kind}), tmp_path)
    assert record.status == "complete", record.reason
    told = record.routing
    assert told["step"] == record.expert_load["step"] == [5, 10, 12]
    for name in ("top1_probability", "max_vio_batch", "saturation"):
        assert torch.tensor(told[name]).shape == (3, 2)
    assert told["saturation"][-1] == [1.0, 1.0]
    load = torch.tensor(told["load_by_timestep"])
    assert load.shape == (2, 10, 2, 4)
    sums = load.sum(-1)
    torch.testing.assert_close(sums[sums > 0], torch.ones_like(sums[sums > 0]), rtol=0, atol=1e-4)
    pairs = torch.tensor(told["coactivation"])
    assert pairs.shape == (2, 4, 4) and (pairs.diagonal(dim1=1, dim2=2) == 1).all()
    assert record.metrics["router/top1_probability"] == pytest.approx(sum(told["top1_probability"][-1]) / 2, abs=1e-4)


def test_an_alarm_is_recorded_and_may_end_the_run(tmp_path) -> None:
    # Steps of this size send all tokens to few experts.
    broken = QUICK | {
        "model.num_experts": 8, "model.router.kind": "bias_balanced", "model.router.bias_update_rate": 1e-6,
        "optimizer.learning_rate": 1.0, "optimizer.gradient_clip": 0.0, "objective.load_balancing_weight": 0.0,
    }  # fmt: skip
    marked = train(build(broken), tmp_path / "marked")
    assert marked.status == "complete" and marked.alarms
    stopped = train(build(broken, {"trainer.stop_on_alarm": True}), tmp_path / "stopped")
    assert stopped.status == "failed" and "(trainer.stop_on_alarm)" in (stopped.reason or "")
