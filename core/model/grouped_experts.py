"""Grouped experts: gather each expert's rows, three matmuls, sum per token; and its gradient.

Shapes: N tokens, K experts of each, M = N K assignments in S slots, m of a part, E experts, D hidden, W expert size, F = 2 W.

The gradient is written by hand for three reasons. Neither direction scatters on an accelerator: sums over a token's
experts are gathers by the inverse permutation. The gate multiplies the W-wide hidden state, so that its gradient needs
no expert output to be kept; only the inputs of the activation are. And on a CPU the experts are taken a few at a time:
every intermediate stays in cache, and no allocation is so large that the C library returns it to the kernel and faults
its pages in anew the next time (that alone took a third of a step).
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PART_BYTES = 2**21  # of input rows in a part, on a CPU: what its second-level cache holds
BAG_BYTES = 2**25  # of all slots' outputs at once, on a CPU: larger blocks glibc returns to the kernel
FEW_SLOTS = 4  # an expert, without a gradient: so few don't pay for putting both input matrices into one
BF16_ROWS = 32  # oneDNN builds a kernel for every new shape: that took longer than multiplying by it


class Assignments(NamedTuple):
    """Assignments of N tokens to E experts, sorted by expert.

    Each expert's rows may be filled up to a multiple: the slots beyond its assignments are token 0's with a gate of 0.
    ragged: some of the N K entries are no assignment; their slot is S, one past the last, and slots beyond the sum of
    counts_E (which only the device may know) hold nothing.
    """

    slot_NK: Tensor  # int64: where each assignment lies among the S
    token_S: Tensor  # int64: each slot's token
    counts_E: Tensor  # how many slots each expert has
    ragged: bool = False


class Part(NamedTuple):
    """Consecutive experts that are computed together, and their rows among the M."""

    experts: slice
    rows: slice
    ends_E: Tensor  # int32, where each expert's rows end, counted from the part's first
    sizes: list[int] | None  # rows of each expert; None where only the device knows them


def sort_by_expert(experts_NK: Tensor, counts_E: Tensor, multiple: int = 1, slots: int | None = None) -> Assignments:
    """Order the assignments by expert, those of one expert by token, each expert's filled up to a multiple.

    experts_NK: (N, K) int64; counts_E: (E,), each expert's share of them. A multiple above 1 waits for the device. slots:
    where given, entries of -1 are no assignment, and at most so many are one.
    """
    keys_M = experts_NK.reshape(-1)
    if slots is not None:
        keys_M = keys_M.where(keys_M >= 0, len(counts_E))  # behind all experts
    if len(counts_E) <= torch.iinfo(torch.int16).max:
        keys_M = keys_M.to(torch.int16)  # radix sort's passes are as many as a key's bytes
    order_M = keys_M.argsort(stable=True)
    if slots is not None:
        order_M = order_M[: int(counts_E.sum()) if in_parts(counts_E.device) else slots]
    token_M = order_M.div(experts_NK.shape[1], rounding_mode="floor")
    place_M = torch.arange(len(order_M), device=order_M.device)
    if multiple > 1:
        filled_E = (counts_E + multiple - 1).div(multiple, rounding_mode="floor") * multiple
        shift_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)
        place_M, counts_E = place_M + shift_E.repeat_interleave(counts_E), filled_E
        token_M = token_M.new_zeros(int(filled_E.sum())).scatter_(0, place_M, token_M)
    slot_M = torch.full_like(experts_NK, len(token_M)).view(-1).scatter_(0, order_M, place_M)
    if slots is not None:
        slot_M = slot_M.where(experts_NK.reshape(-1) >= 0, len(token_M))  # the slots may reach beyond the assignments
    return Assignments(slot_M.view_as(experts_NK), token_M, counts_E, slots is not None)


def outside_graphs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As torch.compiler.disable, but torch._dynamo (two seconds) isn't imported where nothing is compiled."""
    apart = torch._disable_dynamo(function)  # of the ways to say this the one that imports nothing yet

    @functools.wraps(function)
    def called(*arguments: Any) -> Tensor:
        compiles = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        return apart(*arguments) if compiles else function(*arguments)

    return called


def fill_multiple(x_ND: Tensor) -> int:
    """The multiple of rows that an expert's products are computed in: more than 1 for bf16 on a CPU."""
    return BF16_ROWS if in_parts(x_ND.device) and x_ND.dtype == torch.bfloat16 else 1


@outside_graphs  # torch 2.13 traces grouped_mm in bf16 only, though it computes fp32 as well
def mix(
    x_ND: Tensor, gates_NK: Tensor, assignments: Assignments, gate_EWD: Tensor, up_EWD: Tensor, down_EDW: Tensor
) -> Tensor:
    """For each token the gated sum of its experts' outputs, computed in x_ND's type. Returns (N, D).

    Weights of another type are converted as they are used; their gradients have their own type.
    """
    few = len(assignments.token_S) <= FEW_SLOTS * len(gate_EWD) and not assignments.ragged
    if few and in_parts(x_ND.device) and not torch.is_grad_enabled():
        return _mix_few(x_ND, gates_NK, assignments, gate_EWD, up_EWD, down_EDW)
    return _Mixture.apply(x_ND, gates_NK, gate_EWD, up_EWD, down_EDW, assignments)


def _mix_few(
    x_ND: Tensor, gates_NK: Tensor, assignments: Assignments, gate_EWD: Tensor, up_EWD: Tensor, down_EDW: Tensor
) -> Tensor:
    """The same, expert after expert: experts without rows cost nothing, and no weights are copied."""
    gate_S1, counts = gate_of_slots(gates_NK, assignments, x_ND.dtype), assignments.counts_E.tolist()
    rows_SD = x_ND.index_select(0, assignments.token_S)
    out_SD = torch.empty_like(rows_SD)
    for expert, (rows_mD, gate_m1, out_mD) in enumerate(
        zip(rows_SD.split(counts), gate_S1.split(counts), out_SD.split(counts), strict=True)
    ):
        if len(rows_mD):
            gate_WD, up_WD, down_DW = (weight[expert].to(x_ND.dtype) for weight in (gate_EWD, up_EWD, down_EDW))
            hidden_mW = F.silu(F.linear(rows_mD, gate_WD)).mul_(F.linear(rows_mD, up_WD)).mul_(gate_m1)
            torch.mm(hidden_mW, down_DW.t(), out=out_mD)
    return F.embedding_bag(assignments.slot_NK, out_SD, mode="sum")


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gates_NK: Tensor,
        gate_EWD: Tensor,
        up_EWD: Tensor,
        down_EDW: Tensor,
        assignments: Assignments,
    ) -> Tensor:
        gate_S1 = gate_of_slots(gates_NK, assignments, x_ND.dtype)
        total = _Total(x_ND, assignments)
        kept = []
        for part in parts(assignments.counts_E, _rows(x_ND)):
            rows_mD = x_ND.index_select(0, assignments.token_S[part.rows])
            inputs_mF = grouped(rows_mD, _gate_up(gate_EWD, up_EWD, part, x_ND.dtype).transpose(1, 2), part)
            gate_mW, up_mW = inputs_mF.chunk(2, dim=-1)
            hidden_mW = F.silu(gate_mW).mul_(up_mW).mul_(gate_S1[part.rows])
            total.add(hidden_mW, down_EDW[part.experts].to(x_ND.dtype).transpose(1, 2), part)
            kept.append(inputs_mF)
        ctx.save_for_backward(x_ND, gates_NK, gate_EWD, up_EWD, down_EDW, *assignments[:3], *kept)
        ctx.ragged = assignments.ragged
        return total.result()

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph; once_differentiable would leave terms out without a word
            raise RuntimeError("the mixture's gradient is written by hand and has no gradient of its own")
        x_ND, gates_NK, gate_EWD, up_EWD, down_EDW, *saved = ctx.saved_tensors
        assignments, kept, dtype = Assignments(saved[0], saved[1], saved[2], ctx.ragged), saved[3:], x_ND.dtype
        token_S, counts_E = assignments.token_S, assignments.counts_E
        grad_ND = grad_ND.to(dtype).contiguous()
        gate_S1 = gate_of_slots(gates_NK, assignments, dtype)
        grad_x = _Total(x_ND, assignments)
        grad_gate_S = gates_NK.new_empty(len(token_S))
        grad_gate, grad_up, grad_down = (torch.empty_like(weight) for weight in (gate_EWD, up_EWD, down_EDW))
        for part, inputs_mF in zip(parts(counts_E, _rows(x_ND)), kept, strict=True):
            rows_mD = x_ND.index_select(0, token_S[part.rows])
            grad_mD = grad_ND.index_select(0, token_S[part.rows])
            gate_m1, (gate_mW, up_mW) = gate_S1[part.rows], inputs_mF.chunk(2, dim=-1)
            silu_mW = F.silu(gate_mW)
            hidden_mW = silu_mW * up_mW
            grad_mW = grouped(grad_mD, down_EDW[part.experts].to(dtype), part)
            torch.sum(grad_mW * hidden_mW, -1, dtype=grad_gate_S.dtype, out=grad_gate_S[part.rows])
            grouped_outer(grad_mD, hidden_mW.mul_(gate_m1), part, grad_down[part.experts])
            grad_mW.mul_(gate_m1)
            grad_mF = torch.empty_like(inputs_mF)
            grad_gate_mW, grad_up_mW = grad_mF.chunk(2, dim=-1)
            torch.mul(grad_mW, silu_mW, out=grad_up_mW)
            torch.ops.aten.silu_backward.grad_input(grad_mW.mul_(up_mW), gate_mW, grad_input=grad_gate_mW)
            grad_both_EFD = grad_gate.new_empty(len(part.ends_E), grad_mF.shape[1], rows_mD.shape[1], dtype=dtype)
            grouped_outer(grad_mF, rows_mD, part, grad_both_EFD)
            for grad_EWD, found_EWD in zip((grad_gate, grad_up), grad_both_EFD.chunk(2, dim=1), strict=True):
                grad_EWD[part.experts].copy_(found_EWD)
            grad_x.add(grad_mF, _gate_up(gate_EWD, up_EWD, part, dtype), part)
        if ctx.ragged:
            grad_gate_S = F.pad(grad_gate_S, (0, 1))  # what is no assignment has no gate
        return grad_x.result(), grad_gate_S[assignments.slot_NK], grad_gate, grad_up, grad_down, None


def gate_of_slots(gates_NK: Tensor, assignments: Assignments, dtype: torch.dtype) -> Tensor:
    """Each slot's gate (S, 1): 0 for what only fills up, so that it adds nothing to any output or gradient."""
    slots = len(assignments.token_S)
    gate_S = gates_NK.new_zeros(slots + assignments.ragged, dtype=dtype)
    gate_S = gate_S.scatter(0, assignments.slot_NK.flatten(), gates_NK.flatten().to(dtype))
    return gate_S[:slots].unsqueeze(1)


def in_parts(device: torch.device) -> bool:
    """True if experts are taken a few at a time: on a CPU, where sizes are known without waiting and caches are small."""
    return device.type == "cpu"


def _rows(x_ND: Tensor) -> int:
    return max(1, PART_BYTES // (x_ND.shape[1] * x_ND.itemsize))


def parts(counts_E: Tensor, rows: int) -> Iterator[Part]:
    """Split the experts into parts of about `rows` rows on a CPU; elsewhere one part, without asking the device."""
    if not in_parts(counts_E.device):
        yield Part(slice(None), slice(None), counts_E.cumsum(0, dtype=torch.int32), None)
        return
    counts = counts_E.tolist()
    first = start = end = 0
    for expert, count in enumerate(counts):
        end += count
        last = expert + 1 == len(counts)
        if last or end + counts[expert + 1] - start > rows:
            ends_E = counts_E[first : expert + 1].cumsum(0, dtype=torch.int32)
            yield Part(slice(first, expert + 1), slice(start, end), ends_E, counts[first : expert + 1])
            first, start = expert + 1, end


def grouped(rows_mI: Tensor, weight_EIO: Tensor, part: Part, out_mO: Tensor | None = None) -> Tensor:
    """Each expert's rows times its matrix, into `out_mO` where sizes are known and it is given. Returns (m, O)."""
    if part.sizes is None:
        return F.grouped_mm(rows_mI, weight_EIO, offs=part.ends_E)
    if out_mO is None:
        out_mO = rows_mI.new_empty(len(rows_mI), weight_EIO.shape[-1])
    for rows, weight, out in zip(rows_mI.split(part.sizes), weight_EIO.unbind(), out_mO.split(part.sizes), strict=True):
        torch.mm(rows, weight, out=out)
    return out_mO


def grouped_outer(left_mI: Tensor, right_mO: Tensor, part: Part, out_EIO: Tensor) -> None:
    """Write each expert's left^T right, summed over its rows, to `out_EIO`: zeros for an expert without rows."""
    if part.sizes is None:
        out_EIO.copy_(F.grouped_mm(left_mI.t(), right_mO, offs=part.ends_E))
        return
    for left, right, out in zip(left_mI.split(part.sizes), right_mO.split(part.sizes), out_EIO.unbind(), strict=True):
        if out.dtype == left.dtype:
            torch.mm(left.t(), right, out=out)
        else:
            out.copy_(left.t() @ right)


def _gate_up(gate_EWD: Tensor, up_EWD: Tensor, part: Part, dtype: torch.dtype) -> Tensor:
    """Both input matrices of a part's experts, one under the other: one wide matmul is faster than two narrow ones."""
    gate, up = gate_EWD[part.experts], up_EWD[part.experts]
    both = gate.new_empty((len(gate), 2 * gate.shape[1], gate.shape[2]), dtype=dtype)
    both[:, : gate.shape[1]].copy_(gate)
    both[:, gate.shape[1] :].copy_(up)
    return both


class _Total:
    """Multiplies each slot's row by its expert's matrix and sums per token.

    On a CPU all slots' products are kept and summed in one pass where they fit into memory that the C library keeps, else
    added part by part, in at least fp32; elsewhere they are gathered at once.
    """

    def __init__(self, like_ND: Tensor, assignments: Assignments) -> None:
        self.assignments, self.dtype, self.sum_ND, self.all_SD = assignments, like_ND.dtype, like_ND, None
        slots = len(assignments.token_S)
        if not in_parts(like_ND.device):
            return
        if not assignments.ragged and slots and slots * like_ND.shape[1] * like_ND.itemsize < BAG_BYTES:
            self.all_SD = like_ND.new_empty(slots, like_ND.shape[1])
        else:
            self.sum_ND = torch.zeros_like(like_ND, dtype=torch.promote_types(self.dtype, torch.float32))

    def add(self, rows_mI: Tensor, weight_EID: Tensor, part: Part) -> None:
        if self.all_SD is not None:
            grouped(rows_mI, weight_EID, part, self.all_SD[part.rows])
            return
        rows_mD = grouped(rows_mI, weight_EID, part)
        if part.sizes is not None:
            tokens_m = self.assignments.token_S[part.rows]
            self.sum_ND.index_add_(0, tokens_m, rows_mD.to(self.sum_ND.dtype))
            return
        if self.assignments.ragged:
            used_S = torch.arange(len(rows_mD), device=rows_mD.device) < self.assignments.counts_E.sum()
            rows_mD = rows_mD.where(used_S.unsqueeze(1), 0)  # what grouped_mm leaves behind the last expert is anything
        slot_NK = self.assignments.slot_NK
        if self.assignments.ragged and len(rows_mD) < slot_NK.numel():
            wide_ND = torch.zeros_like(self.sum_ND, dtype=torch.promote_types(self.dtype, torch.float32))
            self.sum_ND = wide_ND.index_add_(0, self.assignments.token_S, rows_mD.to(wide_ND.dtype))
            return
        if self.assignments.ragged:  # as many slots as entries: if one is no assignment the last slot holds nothing
            slot_NK = slot_NK.clamp(max=len(rows_mD) - 1)
        self.sum_ND = rows_mD.index_select(0, slot_NK.flatten()).view(*slot_NK.shape, -1).sum(1)

    def result(self) -> Tensor:
        if self.all_SD is not None:
            return F.embedding_bag(self.assignments.slot_NK, self.all_SD, mode="sum")  # sums bf16 in fp32
        return self.sum_ND.to(self.dtype)
