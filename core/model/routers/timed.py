"""Routers that see the timestep: `additive`, `film`, `bin_bias`, `timestep_only` and `unmodulated`.

The first three start as token choice: what they add is zero at first, so that they differ from it by what they learn alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.routing import Conditions, Router, TopKRouter, time_features


class AdditiveRouter(TopKRouter):
    """logits + W_t emb(t), W_t zero at first: the timestep moves every token of a sequence alike."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.time_EF = _of_time(config.experts, config.router.time_features, zero=True)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return super().logits(x_ND, given) + _from_time(given, self.time_EF)


class FilmRouter(TopKRouter):
    """The router's input is gamma(t) * h + beta(t), 1 and 0 at first (FiLM, arXiv 1709.07871)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.film_CF = _of_time(2 * config.hidden_size, config.router.time_features, zero=True)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        gain_ND, shift_ND = _from_time(given, self.film_CF).chunk(2, dim=-1)
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
        return _from_time(given, self.time_EF, F.silu)


class UnmodulatedRouter(Router):
    """W [emb(t); norm(x)] on the residual stream, with no learned scale, not on the experts' input (Nucleus-Image)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.eps = config.norm_eps
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.time_EF = _of_time(config.experts, config.router.time_features)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        assert given is not None and given.residual_ND is not None
        plain_ND = F.rms_norm(given.residual_ND.float(), given.residual_ND.shape[-1:], eps=self.eps)
        return F.linear(plain_ND, self.weight_ED.float()) + _from_time(given, self.time_EF)


def _from_time(
    given: Conditions | None, weight_XF: Tensor, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """A linear map of the features of each sequence's timestep, repeated for its tokens. Returns (N, X)."""
    assert given is not None, "this rule needs a timestep"
    features_BF = time_features(given.timestep_B, weight_XF.shape[1])
    return given.per_token(F.linear(activation(features_BF) if activation else features_BF, weight_XF.float()))


def _of_time(*shape: int, zero: bool = False) -> nn.Parameter:
    """A parameter that meets each sequence's timestep once, rather than every token."""
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.per_sequence, parameter.starts_at_zero = True, zero  # type: ignore[attr-defined]
    return parameter
