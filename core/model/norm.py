"""RMSNorm, which torch composes of many passes over memory on a CPU: here in few, its gradient by hand.

Shapes: D features of a row, N rows.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.model.precision import computed_in

CHUNK_FEATURES = 2**18  # 1 MiB in fp32: less, and the calls cost more than the cache saves


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467, Eq. 4), in at least fp32.

    x: (..., D). Returns the same shape, in autocast's type where it is on, for what follows is a matmul.
    """

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        dtype = computed_in(x)
        if by_hand(x) and torch.is_grad_enabled():  # torch's own is slow backward only
            return _RMSNorm.apply(x, self.weight, self.eps, dtype)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_ND, out = x.reshape(-1, x.shape[-1]), torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
        scale_N1 = x_ND.new_empty((len(x_ND), 1), dtype=wide)
        for x_nD, out_nD, scale_n1 in _chunks(x_ND, out.view_as(x_ND), scale_N1):
            x_nD = x_nD.to(wide)
            torch.linalg.vector_norm(x_nD, dim=-1, keepdim=True, out=scale_n1)
            scale_n1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            out_nD.copy_((x_nD * scale_n1).mul_(weight_D))
        ctx.save_for_backward(x, weight_D, scale_N1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError("RMSNorm's gradient is written by hand and has no gradient of its own")
        x, weight_D, scale_N1 = ctx.saved_tensors
        x_ND, grad_ND, wide = x.reshape(scale_N1.shape[0], -1), grad.reshape(scale_N1.shape[0], -1), scale_N1.dtype
        grad_x, grad_weight_D = torch.empty_like(x_ND), torch.zeros_like(weight_D, dtype=wide)
        with torch.autocast(x.device.type, enabled=False):  # where backward is called under it
            weight_over_D = weight_D.to(wide) / len(weight_D)
            for x_nD, grad_nD, out_nD, scale_n1 in _chunks(x_ND, grad_ND, grad_x, scale_N1):
                grad_nD, unit_nD = grad_nD.to(wide), x_nD * scale_n1
                product_nD = grad_nD * unit_nD
                grad_weight_D += product_nD.sum(0)
                mean_n1 = torch.mv(product_nD, weight_over_D).unsqueeze(1)
                out_nD.copy_(
                    torch.mul(grad_nD, weight_D, out=product_nD).addcmul_(unit_nD, mean_n1, value=-1).mul_(scale_n1)
                )
        return grad_x.view_as(x), grad_weight_D.to(weight_D.dtype), None, None


def _chunks(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each at a time, as many as stay in cache from one pass to the next."""
    rows = max(1, CHUNK_FEATURES // parts[0].shape[-1])
    return zip(*(part.split(rows) for part in parts), strict=True)


def by_hand(x: Tensor) -> bool:
    """True if a hand-written gradient serves: on a CPU, unless a compiler is there to fuse."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
