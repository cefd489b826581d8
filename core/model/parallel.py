"""Expert parallelism: the mixture over DeepSpeed's expert-parallel groups, tokens exchanged by all-to-all.

Shapes as in core.model.grouped_experts; R rows received by this rank. What DeepSpeed's engine asks of such a layer isn't
public (so its version is pinned): it recognises AutoEPMoELayer, and treats the experts by the tags on their parameters.
"""

from typing import Any, ClassVar

import torch
from deepspeed.checkpoint import constants as checkpoint
from deepspeed.checkpoint.autoep_affine import (
    autoep_experts_for_rank,
    autoep_placement_to_affine_map,
    legacy_uniform_autoep_placement_descriptor,
)
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer, SplitPlan, _AllToAllV, compute_split_plan
from deepspeed.utils import groups
from torch import Tensor, nn

from core.model.balance import expert_counts, over_ranks
from core.model.grouped_experts import gate_of_slots, sort_by_expert
from core.model.moe import Experts, MoE
from core.model.routing import Conditions, Routing
from core.model.transformer import Denoiser
from core.runtime.ranks import Ranks


class LocalExperts(Experts):
    """Experts [first, first + count) of all, under the names that DeepSpeed's checkpoints know: w1, w3 in, w2 out.

    Each parameter knows the whole that it is a part of: `whole_shape`, the `held` rows, and what it is `called` there.
    """

    NAMES: ClassVar = {"w1": "gate_EWD", "w3": "up_EWD", "w2": "down_EDW"}

    def __init__(self, experts: Experts, first: int, count: int) -> None:
        nn.Module.__init__(self)
        for name, called in self.NAMES.items():
            whole = getattr(experts, called)
            part = nn.Parameter(torch.empty(count, *whole.shape[1:]))
            part.called, part.whole_shape = called, whole.shape  # type: ignore[attr-defined]
            part.held = slice(first, first + count)  # type: ignore[attr-defined]
            setattr(self, name, part)

    gate_EWD = property(lambda self: self.w1)
    up_EWD = property(lambda self: self.w3)
    down_EDW = property(lambda self: self.w2)


class ParallelMoE(AutoEPMoELayer):
    """The mixture of core.model.moe with each rank holding E / N of the experts: same result.

    Dropless; any router. Router and shared expert are on every rank. With N = 1 nothing travels: the layer only gives
    the experts the names and tags by which another N can go on from its checkpoints.
    """

    def __init__(self, moe: MoE, ranks: Ranks) -> None:
        nn.Module.__init__(self)  # not the parent's: it would build DeepSpeed's own router and experts
        self.num_experts, self.ep_size, self.ep_rank = moe.num_experts, ranks.expert_parallel, ranks.expert_rank
        self.num_local_experts = self.num_experts // self.ep_size
        self.ep_group_name = self.expert_group_name = f"ep_size_{self.ep_size}"
        self.ep_group: Any = None
        self._forget_plan()
        self.router, self.shared_expert = moe.router, moe.shared_expert
        self.experts = LocalExperts(moe.experts, self.ep_rank * self.num_local_experts, self.num_local_experts)
        self._tag()

    def forward(self, x_ND: Tensor, given: Conditions | None = None) -> tuple[Tensor, Routing, Tensor]:
        """As MoE.forward: the mixture (N, D) of this rank's tokens, its routing, and (E,) assignments over all ranks."""
        if self.ep_size == 1:
            return MoE.forward(self, x_ND, given)  # it has all that a MoE has
        routing = self.router(x_ND, given)
        counts_E = expert_counts(routing.experts_NK, self.num_experts, ragged=routing.slots is not None)
        # The host must know the parts' sizes before it can send them: on CUDA they cross while tokens are sorted.
        pending = self._start_async_split_plan(counts_E) if x_ND.is_cuda else None
        assignments = sort_by_expert(routing.experts_NK, counts_E, slots=routing.slots)
        sent_MD = x_ND.index_select(0, assignments.token_S)
        shared_ND = None if self.shared_expert is None else self.shared_expert(x_ND)
        plan = self._wait_async_split_plan(pending) if pending else self._plan(routing, counts_E)
        sent_MD = sent_MD[: sum(plan.input_splits)]  # slots may reach beyond the assignments
        rows_RD = _AllToAllV.apply(self.ep_group, sent_MD, plan.input_splits, plan.output_splits)
        out_RD = self._compute(rows_RD, plan.local_counts_by_source, sum(plan.output_splits))
        back_MD = _AllToAllV.apply(self.ep_group, out_RD, plan.output_splits, plan.input_splits)
        if assignments.ragged:
            gate_M1 = gate_of_slots(routing.gates_NK, assignments, back_MD.dtype)[: len(back_MD)]
            wide_ND = torch.zeros_like(x_ND, dtype=torch.promote_types(back_MD.dtype, torch.float32))
            tokens_M = assignments.token_S[: len(back_MD)]
            mixed_ND = wide_ND.index_add(0, tokens_M, (back_MD * gate_M1).to(wide_ND.dtype)).to(back_MD.dtype)
        else:
            rows_NKD = back_MD.index_select(0, assignments.slot_NK.flatten()).view(*assignments.slot_NK.shape, -1)
            mixed_ND = (rows_NKD * routing.gates_NK.to(rows_NKD.dtype).unsqueeze(-1)).sum(1)
        if shared_ND is not None:
            mixed_ND = mixed_ND + shared_ND
        return mixed_ND, routing, over_ranks(counts_E)

    def _plan(self, routing: Routing, counts_E: Tensor) -> SplitPlan:
        return compute_split_plan(
            routing.experts_NK, self.num_experts, self.ep_size, self.num_local_experts, self.ep_group, counts_E
        )

    def _forget_plan(self) -> None:
        """Reset what the parent's asynchronous plan keeps between calls."""
        for name in ("host_splits", "ready_event", "dependency_event", "device_index", "pending"):
            setattr(self, f"_async_split_plan_{name}", None)

    def _compute(self, rows_RD: Tensor, counts_by_source: Tensor, rows: int) -> Tensor:
        """The output of each received row's expert, in the rows' order: by source rank, and within it by expert."""
        experts = torch.arange(self.num_local_experts, device=rows_RD.device).repeat(self.ep_size)
        expert_R = experts.repeat_interleave(counts_by_source.flatten().long(), output_size=rows)
        ones_R1 = torch.ones(rows, 1, device=rows_RD.device, dtype=torch.float32)
        return self.experts(rows_RD, ones_R1, expert_R.unsqueeze(1), counts_by_source.sum(0).long())

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False, **unused: Any) -> None:
        """Called by the engine: join the expert-parallel group of this size."""
        if self.ep_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.ep_group = groups._get_expert_parallel_group(self.ep_group_name)

    def _tag(self) -> None:
        placement = legacy_uniform_autoep_placement_descriptor(self.num_experts, self.num_local_experts, self.ep_size)
        self.expert_placement_descriptor = placement
        for parameter in self.experts.parameters():
            shape = [self.num_experts, *parameter.shape[1:]]
            meta = {
                checkpoint.AUTOEP_EXPERT_PLACEMENT: placement,
                checkpoint.AFFINE_MAP: autoep_placement_to_affine_map(placement, shape).to_dict(),
                checkpoint.AUTOEP_PARAM_LOGICAL_SHAPE: shape,
                checkpoint.AUTOEP_PARAM_EP_RANK: self.ep_rank,
                checkpoint.AUTOEP_PARAM_LOCAL_EXPERTS: list(autoep_experts_for_rank(placement, self.ep_rank)),
            }
            for name, value in (
                ("allreduce", False),  # over the ranks that hold the same experts, not over all
                ("group_name", self.ep_group_name),
                ("ds_zero_placement_family", "autoep_expert"),
                ("ds_zero_partition_group_name", self.ep_group_name),
                (checkpoint.DS_AUTOEP_UC_META, meta),
            ):
                setattr(parameter, name, value)


def spread_experts(denoiser: Denoiser, ranks: Ranks) -> None:
    """Replace every mixture by one that holds this rank's share of the experts, not yet initialised."""
    for layer in denoiser.layers:
        if layer.moe is not None:
            layer.moe = ParallelMoE(layer.moe, ranks)  # type: ignore[arg-type]
