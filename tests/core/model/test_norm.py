"""RMSNorm by hand equals torch's own, gradients included, however its rows are cut."""

import pytest
import torch
from torch import nn

import core.model.norm as norm
from core.model.norm import RMSNorm


def pair(features: int) -> tuple[RMSNorm, nn.RMSNorm]:
    made, reference = RMSNorm(features, 1e-5), nn.RMSNorm(features, eps=1e-5)
    drawn = torch.randn(features, generator=torch.Generator().manual_seed(features))
    for module in (made, reference):
        module.weight.data.copy_(drawn)
    return made, reference


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("shape", [(7, 16), (3, 5, 16), (2, 5, 4, 8)])
def test_equals_torchs_with_gradients(monkeypatch, shape: tuple[int, ...], by_hand: bool) -> None:
    monkeypatch.setattr(norm, "CHUNK_FEATURES", 3 * shape[-1])  # three rows, and fewer at the end
    monkeypatch.setattr(norm, "by_hand", lambda x: by_hand)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_()
    upstream = torch.randn(shape, generator=generator)
    made, reference = pair(shape[-1])
    found, expected = made(x), reference(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(found, [x, made.weight], upstream)
    expected_grads = torch.autograd.grad(expected, [x, reference.weight], upstream)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    made = pair(6)[0].double()
    x_ND = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, weight: norm._RMSNorm.apply(x, weight, 1e-5, x.dtype), (x_ND, made.weight)
    )


def test_strided_rows_are_read_as_they_lie() -> None:
    made, reference = pair(8)
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(2)).transpose(1, 2).requires_grad_()
    torch.testing.assert_close(made(x), reference(x), rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(made(x).square().sum(), x)
    (expected,) = torch.autograd.grad(reference(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_computes_in_fp32_and_rounds_once(dtype: torch.dtype) -> None:
    made, reference = pair(16)
    x_ND = torch.randn(9, 16, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(x_ND)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, reference(x_ND.float()).bfloat16())
    found.float().sum().backward()
    assert x_ND.grad is not None and x_ND.grad.dtype == dtype
    assert made.weight.grad is not None and made.weight.grad.dtype == torch.float32


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    made, x_ND = pair(4)[0], torch.randn(5, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        torch.autograd.grad(made(x_ND).square().sum(), x_ND, create_graph=True)
