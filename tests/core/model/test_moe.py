"""The fast path equals the definition written as a loop, gradients included."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import core.model.grouped_experts as mixing
from core.config.model import ModelConfig
from core.model.moe import Experts, MoE
from core.model.routing import Routing


def reference_moe(experts: Experts, x_ND: Tensor, gates_NK: Tensor, experts_NK: Tensor) -> Tensor:
    """The mixture written as its definition: for every token, the gated sum of its chosen experts' outputs.

    x_ND: (N, D); gates_NK, experts_NK: (N, K). Returns (N, D).
    """
    rows = []
    for x_D, gates_K, experts_K in zip(x_ND, gates_NK, experts_NK, strict=True):
        out_D = torch.zeros_like(x_D)
        for gate, expert in zip(gates_K, experts_K.tolist(), strict=True):
            if expert < 0:
                continue
            hidden_W = F.silu(experts.gate_EWD[expert] @ x_D) * (experts.up_EWD[expert] @ x_D)
            out_D = out_D + gate * (experts.down_EDW[expert] @ hidden_W)
        rows.append(out_D)
    return torch.stack(rows)


def layer(experts: int, top_k: int) -> MoE:
    made = MoE(ModelConfig(hidden_size=16, num_experts=experts, top_k=top_k, expert_width=16))
    generator = torch.Generator().manual_seed(experts * 10 + top_k)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def take_path(path: str, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Have the layer compute as it does for another device or size."""
    if path in ("cpu, many parts", "cpu, added by part"):
        monkeypatch.setattr(mixing, "PART_BYTES", part_bytes)
    if path == "cpu, added by part":
        monkeypatch.setattr(mixing, "BAG_BYTES", 0)  # as where outputs of all slots are too large to be kept
    if path == "cpu, filled up":
        monkeypatch.setattr("core.model.moe.fill_multiple", lambda x_ND: 4)
    if path == "accelerator":
        monkeypatch.setattr(mixing, "in_parts", lambda device: False)


def assert_as_the_loop(made: MoE, fast: torch.Tensor, routing: Routing, x_ND: torch.Tensor, atol: float) -> None:
    """That a layer's output and gradients are those of the definition written as a loop."""
    slow = reference_moe(made.experts, x_ND, routing.gates_NK, routing.experts_NK)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    upstream, inputs = torch.randn(fast.shape, generator=torch.Generator().manual_seed(2)), [x_ND, *made.parameters()]
    fast_grads = torch.autograd.grad(fast, inputs, upstream, retain_graph=True)
    for a, b in zip(fast_grads, torch.autograd.grad(slow, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "path", ["cpu, one part", "cpu, many parts", "cpu, added by part", "cpu, filled up", "accelerator"]
)
@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(1, 1, 5), (4, 1, 7), (8, 2, 33), (8, 8, 6), (16, 3, 2)])
def test_fast_equals_slow_with_gradients(monkeypatch, path: str, experts: int, top_k: int, tokens: int) -> None:
    take_path(path, monkeypatch, 16 * 4 * 5)  # five rows
    made = layer(experts, top_k)
    x_ND = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    fast, routing, counts_E = made(x_ND)
    assert counts_E.sum() == tokens * top_k
    assert_as_the_loop(made, fast, routing, x_ND, 1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 7, 40])
def test_fast_equals_slow_where_no_gradient_is_wanted(tokens: int) -> None:
    made = layer(8, 2)
    x_ND = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fast, routing, _ = made(x_ND)
        slow = reference_moe(made.experts, x_ND, routing.gates_NK, routing.experts_NK)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast, made(x_ND)[0].detach(), rtol=1e-5, atol=1e-6)


def test_an_expert_without_tokens_changes_nothing_and_gets_no_gradient() -> None:
    made = layer(4, 1)
    made.router.weight_ED.data.zero_()
    made.router.weight_ED.data[2] = 1.0
    out, _, counts_E = made(torch.ones(6, 16))
    assert counts_E.tolist() == [0, 0, 6, 0]
    out.sum().backward()
    assert made.experts.gate_EWD.grad[[0, 1, 3]].abs().sum() == 0
    assert made.experts.gate_EWD.grad[2].abs().sum() > 0


def test_each_token_is_on_its_own() -> None:
    made = layer(8, 2)
    x_ND = torch.randn(9, 16, generator=torch.Generator().manual_seed(3))
    together, alone = made(x_ND)[0], torch.cat([made(row[None])[0] for row in x_ND])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_bf16_is_near_fp32() -> None:
    made = layer(8, 2)
    x_ND = torch.randn(32, 16, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = made(x_ND)[0]
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), made(x_ND)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("path", ["cpu", "cpu, added by part", "accelerator"])
def test_bf16_gradients_are_near_fp32_and_in_the_weights_own_type(monkeypatch, path: str) -> None:
    take_path(path, monkeypatch, mixing.PART_BYTES)
    made, upstream = layer(8, 2), torch.randn(32, 16, generator=torch.Generator().manual_seed(5))
    x_ND = torch.randn(32, 16, generator=torch.Generator().manual_seed(4))
    inputs = list(made.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = torch.autograd.grad(made(x_ND)[0], inputs, upstream.bfloat16())
    high = torch.autograd.grad(made(x_ND)[0], inputs, upstream)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_slots_of_an_expert_are_filled_up_with_what_has_no_gate() -> None:
    experts_NK = torch.tensor([[2, 0], [2, 3], [2, 0], [2, 3], [2, 3]])
    made = mixing.sort_by_expert(experts_NK, torch.tensor([2, 0, 5, 3]), 4)
    assert made.counts_E.tolist() == [4, 0, 8, 4]
    assert made.token_S.tolist() == [0, 2, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 1, 3, 4, 0]
    assert made.slot_NK.tolist() == [[4, 0], [5, 12], [6, 1], [7, 13], [8, 14]]
    for size in (torch.float32, torch.bfloat16):
        x_ND = torch.zeros(2, 4, dtype=size)
        assert mixing.fill_multiple(x_ND) == (1 if size == torch.float32 else mixing.BF16_ROWS)


def test_parts_cover_every_expert_and_row_once() -> None:
    counts_E = torch.tensor([3, 0, 0, 9, 1, 2, 0])
    for rows in (1, 4, 100):
        made = list(mixing.parts(counts_E, rows))
        assert [e for part in made for e in range(*part.experts.indices(7))] == list(range(7))
        assert [r for part in made for r in range(*part.rows.indices(15))] == list(range(15))
        assert all(sum(part.sizes) <= rows or sum(s > 0 for s in part.sizes) == 1 for part in made)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    made, x_ND = layer(4, 2), torch.randn(5, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        torch.autograd.grad(made(x_ND)[0].sum(), x_ND, create_graph=True)


def test_a_compiler_leaves_the_mixture_as_it_is() -> None:
    made, x_ND = layer(4, 2), torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    torch.testing.assert_close(torch.compile(made, backend=keep)(x_ND)[0], made(x_ND)[0])
    calls = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert {"softmax", "argsort"} <= calls  # the router and the sorting are compiled
    assert not {"index_select", "index_add_", "new_zeros"} & calls and not any("silu" in call for call in calls)


def test_a_mixture_imports_no_compiler_where_nothing_is_compiled() -> None:
    program = (
        "import sys, torch\n"
        "from core.config.model import ModelConfig\n"
        "from core.model.moe import MoE\n"
        "made = MoE(ModelConfig(hidden_size=16, num_experts=4, top_k=2, expert_width=16))\n"
        "made(torch.randn(8, 16))[0].sum().backward()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
