"""Routers that see the timestep: `additive`, `film`, `bin_bias`, `timestep_only` and `unmodulated`.

The first three start as token choice: what they add is zero at first, so that they differ from it by what they learn alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.routing import Conditions, Router, TopKRouter


class AdditiveRouter(TopKRouter):
    """logits + W_t emb(t), W_t zero at first: the timestep moves every token of a sequence alike."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.time_EF = _of_time(config.experts, config.router.time_features, zero=True)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        shift_BE = F.linear(self.time(given), self.time_EF.float())
        assert given is not None
        return super().logits(x_ND, given) + given.per_token(shift_BE)


class FilmRouter(TopKRouter):
    """The router's input is gamma(t) * h + beta(t), 1 and 0 at first (FiLM, arXiv 1709.07871)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.film_CF = _of_time(2 * config.hidden_size, config.router.time_features, zero=True)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        film_BC = F.linear(self.time(given), self.film_CF.float())
        assert given is not None
        gain_ND, shift_ND = given.per_token(film_BC).chunk(2, dim=-1)
        return super().logits(x_ND * (1 + gain_ND) + shift_ND, given)


class BinBiasRouter(TopKRouter):
    """A learned bias for each expert in each of `time_bins` equal parts of (0, 1], zero at first."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.bin_TE = _of_time(config.router.time_bins, config.experts, zero=True)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        assert given is not None, "this rule needs a timestep"
        bins = self.settings.time_bins
        bin_B = (given.timestep_B * bins).ceil().long().clamp(1, bins) - 1
        return super().logits(x_ND, given) + given.per_token(self.bin_TE.float()[bin_B])


class TimestepOnlyRouter(Router):
    """softmax(W SiLU(emb(t))): the experts depend on the timestep alone (Switch-DiT, arXiv 2403.09176, Eq. 4)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.time_EF = _of_time(config.experts, config.router.time_features)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        logits_BE = F.linear(F.silu(self.time(given)), self.time_EF.float())
        assert given is not None
        return given.per_token(logits_BE)


class UnmodulatedRouter(Router):
    """W [emb(t); norm(x)] on the residual stream, whose norm has no learned scale: the router's input is not the experts'
    (Nucleus-Image)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.eps = config.norm_eps
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.time_EF = _of_time(config.experts, config.router.time_features)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        shift_BE = F.linear(self.time(given), self.time_EF.float())
        assert given is not None and given.residual_ND is not None
        plain_ND = F.rms_norm(given.residual_ND.float(), given.residual_ND.shape[-1:], eps=self.eps)
        return F.linear(plain_ND, self.weight_ED.float()) + given.per_token(shift_BE)


def _of_time(*shape: int, zero: bool = False) -> nn.Parameter:
    """A parameter that meets each sequence's timestep once, rather than every token."""
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.per_sequence, parameter.starts_at_zero = True, zero  # type: ignore[attr-defined]
    return parameter
