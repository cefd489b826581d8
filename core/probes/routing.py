"""Forward passes of a trained network at several timesteps: who is routed where, and what it costs to be routed otherwise.

Every sequence is seen at every timestep under nested masks: a token has one number u ~ U(0, 1) and is masked at t where
u < t. Shapes: S sparse layers, G sequences of L tokens, T timesteps, M = 2 (visible, masked), K experts of each token among
E; B of the sequences, of N = B L tokens, are in a pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.config.run import RunConfig
from core.data.batches import router_timestep
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.prediction import predict
from core.model.balance import counts_by_group
from core.model.routing import Routing
from core.model.transformer import Denoiser
from core.probes.checks import check_probe
from core.runtime.random_streams import torch_stream
from core.training.deepspeed_config import uses_cuda

TOKENS = 8192  # of a pass: its logits fit a GPU for any vocabulary, and small networks are kept busy


class Choices(NamedTuple):
    """A layer's routing of N tokens: the chosen experts, -1 for none, and their gates. Both (N, K)."""

    gates_NK: Tensor
    experts_NK: Tensor


class Pass(NamedTuple):
    """Each sequence's NELBO (B,), and the choices of each sparse layer."""

    nelbo_B: Tensor
    choices_S: list[Choices]


@dataclass(frozen=True)
class ProbedRouting:
    """Result of the probe's passes.

    timestep_T: the timesteps, ascending. all_SGTME: int64, assignments of all tokens that may be masked, by whether they
    are; fixed_SGTME: of those that are masked at all timesteps or at none. nelbo_GT: each sequence's nats per token,
    weighted by 1 / t (LLaDA-MoE Eq. 2), so that the mean over timesteps is near the NELBO. swapped_GT: the same where
    tokens have the experts and gates that they had T / 2 timesteps away, if their masked status was the same there.
    told_GT: the same where the routers are told the timestep T / 2 away; None for routers that are told none.
    """

    timestep_T: np.ndarray
    all_SGTME: np.ndarray
    fixed_SGTME: np.ndarray
    nelbo_GT: np.ndarray
    swapped_GT: np.ndarray
    told_GT: np.ndarray | None


@torch.inference_mode()
def probe_routing(
    config: RunConfig, denoiser: Denoiser, tokens_GL: Tensor, maskable_GL: Tensor | None = None, *, timesteps: int = 8
) -> ProbedRouting:
    """See every sequence at every timestep, the middles of equal parts of (0, 1); then again with routing from elsewhere.

    tokens_GL: (G, L) int64; maskable_GL: bool, None where any token may be masked. A router that learned on shuffled
    timesteps is told one that says nothing of the mask. Masks depend on config.seed alone. Raises UserError as
    `check_probe` does.
    """
    check_probe(config, timesteps)
    timestep_T = (torch.arange(timesteps) + 0.5) / timesteps
    noise = torch_stream(config.seed, "probe masks")
    noise_GL = torch.rand(tokens_GL.shape, generator=noise)
    shuffled_GT = timestep_T[torch.rand(len(tokens_GL), timesteps, generator=noise).argsort(1)]
    maskable_GL = torch.ones_like(tokens_GL, dtype=torch.bool) if maskable_GL is None else maskable_GL
    device = torch.device("cuda" if uses_cuda(config) else "cpu")
    denoiser.to(device)
    size, parts = max(1, TOKENS // tokens_GL.shape[1]), []
    for first in range(0, len(tokens_GL), size):
        rows = slice(first, first + size)
        own = (part[rows].to(device) for part in (tokens_GL, maskable_GL, noise_GL, shuffled_GT))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
            parts.append(_Sequences(config, denoiser, timestep_T.to(device), *own).probed())
    axes = {"all_SGTME": 1, "fixed_SGTME": 1, "nelbo_GT": 0, "swapped_GT": 0}
    if parts[0].told_GT is not None:
        axes["told_GT"] = 0
    together = {name: np.concatenate([getattr(part, name) for part in parts], axis) for name, axis in axes.items()}
    return replace(parts[0], **together)


@contextmanager
def rerouted(denoiser: Denoiser, choices_S: Sequence[Choices], where_N: Tensor) -> Iterator[None]:
    """Within it, the tokens of `where_N` get the experts and gates of `choices_S`, whatever their routers say.

    choices_S: of each sparse layer, for the same N tokens in order. where_N: (N,) bool.
    """
    mixtures = denoiser.mixtures()
    assert len(mixtures) == len(choices_S)
    hooks = [
        moe.router.register_forward_hook(partial(_replaced, choices=choices, where_N1=where_N.unsqueeze(1)))
        for moe, choices in zip(mixtures, choices_S, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _replaced(module: Any, inputs: Any, routing: Routing, *, choices: Choices, where_N1: Tensor) -> Routing:
    experts_NK = torch.where(where_N1, choices.experts_NK, routing.experts_NK)
    gates_NK = torch.where(where_N1, choices.gates_NK, routing.gates_NK)
    slots = None if routing.slots is None else experts_NK.numel()  # of two routings may be more than either's
    return routing._replace(gates_NK=gates_NK, experts_NK=experts_NK, slots=slots)


@dataclass
class _Sequences:
    """B sequences at all timesteps, on the network's device."""

    config: RunConfig
    denoiser: Denoiser
    timestep_T: Tensor
    tokens_BL: Tensor
    maskable_BL: Tensor
    noise_BL: Tensor
    shuffled_BT: Tensor

    def __post_init__(self) -> None:
        self.masked_TBL = (self.noise_BL < self.timestep_T[:, None, None]) & self.maskable_BL
        always, never = self.masked_TBL[0], ~self.masked_TBL[-1]  # nested: at the least t, and not at the greatest
        self.fixed_BL = (always | never) & self.maskable_BL

    def probed(self) -> ProbedRouting:
        timesteps, half = len(self.timestep_T), len(self.timestep_T) // 2
        away = [(t + half) % timesteps for t in range(timesteps)]
        plain = [self.seen(t) for t in range(timesteps)]
        choices_TS = [own.choices_S for own in plain]
        swapped = [self.swapped(t, other, choices_TS[other]) for t, other in enumerate(away)]
        told_GT = None
        if self.config.model.router.traits.sees_timestep:
            told_GT = _columns([self.seen(t, told_at=other) for t, other in enumerate(away)])
        return ProbedRouting(
            timestep_T=self.timestep_T.double().cpu().numpy(),
            all_SGTME=self.counts(choices_TS, self.maskable_BL),
            fixed_SGTME=self.counts(choices_TS, self.fixed_BL),
            nelbo_GT=_columns(plain),
            swapped_GT=_columns(swapped),
            told_GT=told_GT,
        )

    def seen(self, t: int, told_at: int | None = None) -> Pass:
        """A pass at one timestep, whose routers are told it, or another."""
        assert self.config.model.mask_id is not None  # RunConfig refuses a diffusion objective without one
        masking = self.masking(t)
        batch = Batch.of(self.tokens_BL, masking, self.router_timestep(t if told_at is None else told_at))
        input_BL = self.tokens_BL.masked_fill(masking.masked_BL, self.config.model.mask_id)
        nelbo_B, routings, *_ = predict(self.denoiser, input_BL, batch)
        return Pass(nelbo_B, [Choices(layer.routing.gates_NK, layer.routing.experts_NK) for layer in routings])

    def swapped(self, t: int, other: int, choices_S: Sequence[Choices]) -> Pass:
        """A pass at one timestep, routed as at another where a token's masked status is the same."""
        same_N = (self.masked_TBL[t] == self.masked_TBL[other]).flatten()
        with rerouted(self.denoiser, choices_S, same_N):
            return self.seen(t)

    def masking(self, t: int) -> Masking:
        timestep_B = self.timestep_T[t].expand(len(self.tokens_BL))
        length_B = self.maskable_BL.sum(1).clamp(min=1).float()
        return Masking(self.masked_TBL[t], timestep_B, 1 / timestep_B, length_B)

    def router_timestep(self, t: int) -> Tensor:
        sees = self.config.model.router.sees
        if sees == "shuffled":
            return self.shuffled_BT[:, t]
        return router_timestep(self.masking(t), sees, torch.Generator())

    def counts(self, choices_TS: Sequence[Sequence[Choices]], wanted_BL: Tensor) -> np.ndarray:
        """Assignments of the wanted tokens by sequence, timestep and masked status: (S, B, T, M, E) int64."""
        batch, experts = len(wanted_BL), self.config.model.experts
        counted = []
        for masked_BL, choices_S in zip(self.masked_TBL, choices_TS, strict=True):
            group_BL = 2 * torch.arange(batch, device=wanted_BL.device)[:, None] + masked_BL.long()
            group_N = group_BL.masked_fill(~wanted_BL, 2 * batch).flatten()
            counts = [counts_by_group(choices.experts_NK, experts, group_N, 2 * batch) for choices in choices_S]
            counted.append(torch.stack(counts).view(len(choices_S), batch, 2, experts))
        return torch.stack(counted, 2).cpu().numpy()


def _columns(passes: Sequence[Pass]) -> np.ndarray:
    return torch.stack([one.nelbo_B for one in passes], 1).double().cpu().numpy()
