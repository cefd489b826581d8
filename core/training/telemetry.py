"""Routing telemetry of validations, by layer, and its form in the record.

Shapes: S sparse layers, N tokens, K experts of each among E, T = 10 bins of the timestep, M = 2: visible and masked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.diffusion.masking import Masking
from core.model.balance import counts_by_group, max_violation
from core.model.transformer import LayerRouting
from core.records.metrics import RATIO_BINS

DIGITS = 5  # of shares in a record: a record of 64 experts would be megabytes otherwise


def observe(routings: Sequence[LayerRouting], masking: Masking) -> dict[str, Tensor]:
    """Count one batch's routing: on the device, of this rank's tokens alone where not said otherwise.

    Filling counts for nothing. top1_SN: the highest probability of each token. load_STME: assignments by timestep, masked
    status and expert. pairs_SEE: tokens that reach both experts (the diagonal: that reach the one). choices_SNK: int16, -1
    for none. violation_S: MaxVio of this batch over all ranks.
    """
    masked_BL, real_N = masking.masked_BL, routings[0].routing.real_N
    bin_B = (masking.timestep_B * RATIO_BINS).ceil().long().clamp(1, RATIO_BINS) - 1
    group_N = (2 * bin_B[:, None] + masked_BL.long()).flatten()
    load, pairs = [], []
    for routing, _ in routings:
        experts = routing.probs_NE.shape[1]
        chosen_NK = routing.experts_NK.remainder(experts + 1)  # -1, no expert, comes last
        counts = counts_by_group(routing.experts_NK, experts, group_N, 2 * RATIO_BINS)
        load.append(counts.view(RATIO_BINS, 2, experts))
        chosen_NE = torch.zeros(len(chosen_NK), experts + 1, device=chosen_NK.device).scatter_(1, chosen_NK, 1.0)
        with torch.autocast(chosen_NE.device.type, enabled=False):  # bf16 counts to 256
            pairs.append(chosen_NE[:, :experts].T @ chosen_NE[:, :experts])
    top1_SN = torch.stack([layer.routing.probs_NE.amax(-1) for layer in routings])
    return {
        "top1_SN": top1_SN if real_N is None else top1_SN[:, real_N],
        "load_STME": torch.stack(load),
        "pairs_SEE": torch.stack(pairs),
        "choices_SNK": torch.stack([layer.routing.experts_NK.to(torch.int16) for layer in routings]),
        "violation_S": max_violation(torch.stack([layer.counts_E for layer in routings])),
    }


class RoutingMemory:
    """A run's routing telemetry: a row for each validation, the last one's loads in full, and every one's choices.

    Choices are kept of the first batch alone, which every validation shares: router saturation is measured on it.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.top1_VS: list[list[float]] = []
        self.violation_VS: list[list[float]] = []
        self.last: dict[str, Any] = {}
        self.choices: list[Tensor] = []

    def add(
        self, step: int, outputs: Sequence[dict[str, Tensor]], first: Sequence[dict[str, Tensor]]
    ) -> dict[str, float]:
        """Take note of a validation, and return its metrics. first: every rank's first batch, also among `outputs`."""
        self.steps.append(step)
        top1_S = torch.cat([output["top1_SN"] for output in outputs], 1).double().mean(1)
        violation_S = torch.stack([output["violation_S"] for output in outputs]).double().mean(0)
        self.top1_VS.append(top1_S.tolist())
        self.violation_VS.append(violation_S.tolist())
        load_STME = torch.stack([output["load_STME"] for output in outputs]).sum(0)
        pairs_SEE = torch.stack([output["pairs_SEE"] for output in outputs]).double().sum(0)
        self.last = {"load_by_timestep": _shares(load_STME), "coactivation": _given_first(pairs_SEE)}
        self.choices.append(_in_order(first))
        return {"router/top1_probability": float(top1_S.mean()), "load/max_vio_batch": float(violation_S.mean())}

    def to_dict(self) -> dict[str, Any]:
        """As RunRecord.routing has it."""
        if not self.steps:
            return {}
        saturation = [saturated(choices, self.choices[-1]).tolist() for choices in self.choices]
        rows = {"top1_probability": self.top1_VS, "max_vio_batch": self.violation_VS, "saturation": saturation}
        return {"step": self.steps, **{name: _rounded(torch.tensor(row)) for name, row in rows.items()}, **self.last}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _in_order(first: Sequence[dict[str, Tensor]]) -> Tensor:
    """The choices of a batch whose sequences the ranks took in turns, in the batch's own order: (S, N, K)."""
    some = [output for output in first if len(output["nelbo_B"])]
    ranks = [output["choices_SNK"].unflatten(1, (_sequences(output), -1)).unbind(1) for output in some]
    return torch.cat([rank[i] for i in range(len(ranks[0])) for rank in ranks if i < len(rank)], 1)


def _sequences(output: dict[str, Tensor]) -> int:
    return int(output["row_C"][-1]) + 1 if "row_C" in output else len(output["nelbo_B"])


def saturated(choices_SNK: Tensor, final_SNK: Tensor) -> Tensor:
    """Router saturation of each layer: the share of the final checkpoint's choices that are chosen already (OLMoE,
    arXiv 2409.02060, Eq. 4). Returns (S,)."""
    same_SNKK = (final_SNK.unsqueeze(3) == choices_SNK.unsqueeze(2)) & (final_SNK >= 0).unsqueeze(3)
    return same_SNKK.any(3).sum((1, 2)) / (final_SNK >= 0).sum((1, 2))


def _shares(load_STME: Tensor) -> list[Any]:
    """Each group's expert load: shares that sum to 1 over experts, or 0 where no token was of the group."""
    return _rounded(load_STME.double() / load_STME.sum(-1, keepdim=True).clamp(min=1))


def _given_first(pairs_SEE: Tensor) -> list[Any]:
    """Of the tokens that reach expert i, the share that reach j too (OLMoE, arXiv 2409.02060, Eq. 5); 0 for a dead expert."""
    return _rounded(pairs_SEE / pairs_SEE.diagonal(dim1=1, dim2=2).unsqueeze(2).clamp(min=1))


def _rounded(values: Tensor) -> list[Any]:
    rounded: list[Any] = (values.double() * 10**DIGITS).round().div(10**DIGITS).tolist()
    return rounded
