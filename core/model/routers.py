"""Routing rules: which experts a token goes to, and with what weight. One class each; shapes as in core.model.routing.

`additive`, `film` and `bin_bias` start as token choice: what they add is zero at first, so that they differ from it by what
they learn alone. What is true of a kind is said in core.model.config and core.model.shapes, which need no torch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import ModelConfig, RouterKind
from core.model.config import SEES_OTHERS
from core.model.precision import without_autocast
from core.model.routing import Conditions, Routing, hashed, share_of_mean, time_features

ALIKE = 2.0**-18  # scores (between 0 and 1) less apart than this are equal: fp32's rounding is a hundredth of it


class Router(nn.Module):
    """Scores all experts for each token and chooses among them; a rule overrides `logits`, `choose`, or both.

    Scores are the softmax of the logits, or with `scores="sigmoid"` each expert's own (DeepSeek-V3, arXiv 2412.19437,
    Eq. 15; probs_NE are then the scores over their sum). The gates are the chosen scores as they are; with `renormalise`
    they are divided by their sum.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.top_k, self.experts, self.settings, self.layer = (
            config.experts_per_token, config.experts, config.router, layer,
        )  # fmt: skip

    @property
    def sees_others(self) -> bool:
        """True where a token's experts depend on the other tokens of its sequence."""
        return self.settings.kind in SEES_OTHERS

    def forward(self, x_ND: Tensor, given: Conditions | None = None) -> Routing:
        """Route N tokens. x_ND: (N, D) in any floating type; the arithmetic is fp32, under autocast too."""
        with without_autocast(x_ND):
            logits_NE = self.logits(x_ND.float(), given)
            if self.settings.scores == "sigmoid":
                scores_NE = logits_NE.sigmoid()
                probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
            else:
                scores_NE = probs_NE = logits_NE.softmax(-1)
            gates_NK, experts_NK, slots = self.choose(scores_NE, given)
            if self.settings.renormalise:
                gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            if self.settings.gate_scale != 1:
                gates_NK = gates_NK * self.settings.gate_scale
        return Routing(logits_NE, probs_NE, gates_NK, experts_NK, slots)

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        """Each expert's logit, (N, E). given: None where nothing is known but x."""
        raise NotImplementedError

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
        """The gates and indices of the chosen experts, both (N, K), and Routing.slots."""
        gates_NK, experts_NK = scores_NE.topk(self.top_k, dim=-1)
        return gates_NK, experts_NK, None

    def rebalance(self, counts_E: Tensor) -> None:
        """Called after each optimizer step with the step's (E,) assignments; most rules learn nothing from it."""

    def time(self, given: Conditions | None) -> Tensor:
        """The features of each sequence's timestep, (B, F)."""
        assert given is not None, "this rule needs a timestep"
        return time_features(given.timestep_B, self.settings.time_features)


class TopKRouter(Router):
    """Token choice: bias-free linear, fp32 softmax over all experts, then the top k (LLaDA-MoE; OLMoE, arXiv 2409.02060)."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.weight_ED = nn.Parameter(torch.empty(config.experts, config.hidden_size))

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return F.linear(x_ND, self.weight_ED.float())


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

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
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

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
        assert given is not None, "this rule needs a mask ratio"
        most = 2 * self.top_k - 1
        gates_NK, experts_NK = scores_NE.topk(most, dim=-1)
        share_B = share_of_mean(given.ratio_B, self.settings.k_schedule or "linear_reverse") / 2
        k_B = 1 + (share_B * most).floor().long().clamp(0, most - 1)
        unused_NK = torch.arange(most, device=k_B.device) >= given.per_token(k_B.unsqueeze(1))
        return gates_NK.masked_fill(unused_NK, 0.0), experts_NK.masked_fill(unused_NK, -1), experts_NK.numel()


class ExpertChoiceRouter(TopKRouter):
    """Experts choose tokens: within a sequence each takes the C = L k / E that score it highest (arXiv 2202.09368).

    With a schedule C follows the sequence's mask ratio, its mean over ratios unchanged. A token's experts then depend on
    the other tokens of its sequence, and never on other sequences.
    """

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
        assert given is not None, "this rule needs to know which tokens make a sequence"
        batch, length = given.tokens_BL.shape
        mean, schedule = length * self.top_k / self.experts, self.settings.k_schedule or "constant"
        most = min(length, max(1, round(mean if schedule == "constant" else 2 * mean)))
        capacity_B = (share_of_mean(given.ratio_B, schedule) * mean).round().long().clamp(1, most)
        scores_BLE = scores_NE.view(batch, length, self.experts)
        # Tokens that say the same (every one of a wholly masked sequence) score the same but for rounding, which depends
        # on the device and its share of the batch: they count as equal, and a stable order resolves them by place.
        alike_BLE = (scores_BLE.detach() / ALIKE).round()
        order_BCE = alike_BLE.sort(dim=1, descending=True, stable=True).indices[:, :most]
        taken_BCE = (torch.arange(most, device=order_BCE.device)[None, :, None] < capacity_B[:, None, None]).expand_as(
            order_BCE
        )
        chosen_BLE = torch.zeros_like(scores_BLE, dtype=torch.bool).scatter_(1, order_BCE, taken_BCE)
        chosen_NE = chosen_BLE.view_as(scores_NE)
        experts_NE = torch.arange(self.experts, device=chosen_NE.device).expand_as(chosen_NE)
        return (
            scores_NE.masked_fill(~chosen_NE, 0.0),
            experts_NE.masked_fill(~chosen_NE, -1),
            batch * self.experts * most,
        )


class SoftRouter(TopKRouter):
    """A control: the dense mixture of all experts, weighted by their scores. Its compute is E / k times token choice's."""

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
        return scores_NE, torch.arange(self.experts, device=scores_NE.device).expand_as(scores_NE), None


class HashRouter(Router):
    """A control that learns nothing: k experts by a fixed hash of the token's id and the layer, gates 1 / k
    (Hash Layers, arXiv 2106.04426). All masked tokens have one id, so they share their experts."""

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return torch.zeros(len(x_ND), self.experts, device=x_ND.device)

    def choose(self, scores_NE: Tensor, given: Conditions | None) -> tuple[Tensor, Tensor, int | None]:
        assert given is not None, "this rule needs the tokens"
        draw_NE = hashed(self.keys(given)[:, None] * self.experts + torch.arange(self.experts, device=scores_NE.device))
        experts_NK = draw_NE.topk(self.top_k, dim=-1).indices
        return torch.full_like(experts_NK, 1 / self.top_k, dtype=torch.float32), experts_NK, None

    def keys(self, given: Conditions) -> Tensor:
        """What each token's experts are drawn by. Returns (N,) int64."""
        return hashed(given.tokens_BL.flatten() + (self.layer << 32))


class RandomRouter(HashRouter):
    """A control: k experts by chance, gates 1 / k. The chance is a hash of the whole sequence, the place and the layer:
    the same input meets the same experts, and there is no pattern to learn."""

    def keys(self, given: Conditions) -> Tensor:
        tokens_BL = given.tokens_BL
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        sequence_B = hashed(tokens_BL + (place_L << 32)).sum(1)
        return hashed(sequence_B[:, None] + hashed(place_L + (self.layer << 32))).flatten()


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
    "soft": SoftRouter,
    "hash": HashRouter,
    "random": RandomRouter,
}
