"""Routing rules beyond token choice: one class each; shapes as in core.model.routing, which has token choice itself.

`additive`, `film` and `bin_bias` start as token choice: what they add is zero at first, so that they differ from it by what
they learn alone. What is true of a kind is said in core.config.model and core.model.shapes, which need no torch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.run import ModelConfig, RouterKind
from core.model.confined import places
from core.model.expert_choice import ECDLMRouter, ExpertChoiceRouter
from core.model.routing import Conditions, Router, TopKRouter, hashed, share_of_mean


class BiasBalancedRouter(TopKRouter):
    """Loss-free balancing: a bias per expert, moved by load, in the choice only and never in the gate.

    After each step b_i grows by `bias_update_rate` where expert i got less than the mean load, and shrinks where it got
    more (arXiv 2408.15664, Algorithm 1). The bias is state, not a parameter: no gradient reaches it.
    """

    bias_E: Tensor

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.register_buffer("bias_E", torch.zeros(config.experts, dtype=torch.float32))

    def _apply(self, *arguments: Any, **settings: Any) -> "BiasBalancedRouter":
        super()._apply(*arguments, **settings)
        self.bias_E = self.bias_E.float()  # an engine that turns modules to bf16 would round the updates away
        return self

    def choose(
        self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None
    ) -> tuple[Tensor, Tensor, int | None]:
        experts_NK = (scores_NE + self.bias_E).topk(self.top_k, dim=-1).indices
        return scores_NE.gather(-1, experts_NK), experts_NK, None

    @torch.no_grad()
    def rebalance(self, counts_E: Tensor) -> None:
        load_E = counts_E.float()
        self.bias_E += self.settings.bias_update_rate * (load_E.mean() - load_E).sign()


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


class AdaptiveKRouter(TopKRouter):
    """Token choice with k a function of the sequence's mask ratio: 1, 2, ... 2 k - 1 on equal parts of it, mean k.

    The schedule is "linear_reverse" unless told otherwise: more experts where less is masked (EC-DLM's schedule).
    """

    def choose(
        self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None
    ) -> tuple[Tensor, Tensor, int | None]:
        assert given is not None, "this rule needs a mask ratio"
        most = 2 * self.top_k - 1
        gates_NK, experts_NK = scores_NE.topk(most, dim=-1)
        share_B = share_of_mean(given.ratio_B, self.settings.k_schedule or "linear_reverse") / 2
        k_B = 1 + (share_B * most).floor().long().clamp(0, most - 1)
        unused_NK = torch.arange(most, device=k_B.device) >= given.per_token(k_B.unsqueeze(1))
        return gates_NK.masked_fill(unused_NK, 0.0), experts_NK.masked_fill(unused_NK, -1), experts_NK.numel()


class SoftRouter(TopKRouter):
    """A control: the dense mixture of all experts, weighted by their scores. Its compute is E / k times token choice's."""

    def choose(
        self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None
    ) -> tuple[Tensor, Tensor, int | None]:
        return scores_NE, torch.arange(self.experts, device=scores_NE.device).expand_as(scores_NE), None


class HashRouter(Router):
    """A control that learns nothing: k experts by a fixed hash of the token's id and the layer, gates 1 / k
    (Hash Layers, arXiv 2106.04426). All masked tokens have one id, so they share their experts."""

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return torch.zeros(len(x_ND), self.experts, device=x_ND.device)

    def choose(
        self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None
    ) -> tuple[Tensor, Tensor, int | None]:
        assert given is not None, "this rule needs the tokens"
        draw_NE = hashed(self.keys(given)[:, None] * self.experts + torch.arange(self.experts, device=scores_NE.device))
        experts_NK = draw_NE.topk(self.top_k, dim=-1).indices
        return torch.full_like(experts_NK, 1 / self.top_k, dtype=torch.float32), experts_NK, None

    def keys(self, given: Conditions) -> Tensor:
        """What each token's experts are drawn by. Returns (N,) int64."""
        return hashed(given.tokens_BL.flatten() + (self.layer << 32))


class RandomRouter(HashRouter):
    """A control: k experts by chance, gates 1 / k. The chance is a hash of the whole sequence, the place and the layer:
    the same input meets the same experts, and there is no pattern to learn. Of packed sequences it is each text's own."""

    def keys(self, given: Conditions) -> Tensor:
        tokens_BL, segments_BL = given.tokens_BL, given.segments_BL
        if segments_BL is None:
            place_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
            sequence_BL = hashed(tokens_BL + (place_BL << 32)).sum(1, keepdim=True)
        else:
            place_BL = places(segments_BL)
            own_BL = hashed(tokens_BL + (place_BL << 32))
            sequence_BL = torch.zeros_like(own_BL).scatter_add_(1, segments_BL, own_BL).gather(1, segments_BL)
        return hashed(sequence_BL + hashed(place_BL + (self.layer << 32))).flatten()


def _of_time(*shape: int, zero: bool = False) -> nn.Parameter:
    """A parameter that meets each sequence's timestep once, rather than every token."""
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.per_sequence, parameter.starts_at_zero = True, zero  # type: ignore[attr-defined]
    return parameter


ROUTERS: dict[RouterKind, type[Router]] = {
    "topk": TopKRouter,
    "bias_balanced": BiasBalancedRouter,
    "additive": AdditiveRouter,
    "film": FilmRouter,
    "bin_bias": BinBiasRouter,
    "timestep_only": TimestepOnlyRouter,
    "unmodulated": UnmodulatedRouter,
    "adaptive_k": AdaptiveKRouter,
    "expert_choice": ExpertChoiceRouter,
    "ec_dlm": ECDLMRouter,
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
