"""Expert choice: experts take tokens of a sequence, a fixed number of them or one that follows the mask ratio.

Shapes as in core.model.routing; C tokens that an expert takes at most.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from core.config.model import ModelConfig
from core.config.router_kinds import EC_DLM_K
from core.model.routing import Choice, Conditions, TopKRouter, share_of_range

ALIKE = 2.0**-18  # scores (between 0 and 1) less apart than this are equal: fp32's rounding is a hundredth of it
ALIKE_LOGITS = 2.0**-14  # the same of logits, which are some ten times as large
SAMPLES = 10_000  # of random gates, behind a scaling factor


class ExpertChoiceRouter(TopKRouter):
    """Experts choose tokens: within a sequence each takes the C = L k / E that score it highest (arXiv 2202.09368).

    With a schedule C follows the sequence's mask ratio, from none to twice its mean, which is unchanged. A token's experts
    then depend on the other tokens of its sequence, and never on other sequences.
    """

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        assert given is not None, "this rule needs to know which tokens make a sequence"
        batch, length = given.tokens_BL.shape
        mean, schedule = length * self.top_k / self.experts, self.settings.k_schedule or "constant"
        most = min(length, max(1, round(mean if schedule == "constant" else 2 * mean)))
        capacity_B = (2 * share_of_range(given.ratio_B, schedule) * mean).round().long().clamp(1, most)
        chosen_NE = taken(scores_NE / ALIKE, capacity_B, most)
        return Choice(scores_NE.masked_fill(~chosen_NE, 0.0), _named(chosen_NE), batch * self.experts * most)


class ECDLMRouter(TopKRouter):
    """Expert choice as EC-DLM has it (arXiv 2604.01622): within a sequence each expert takes the tokens of highest logits.

    A token's gates are the softmax over the experts that took it (with `scores="sigmoid"` their sigmoids over the sum), times
    a factor of how many they are that gives the routed sum the norm of the shared experts' sum (`balancing_factors`); without
    shared experts there is none. Of L tokens an expert takes floor(L k / E), at least one, where k follows the mask ratio:
    linear_reverse unless told otherwise, by the published whole steps from 8 to 32 around a mean of 20, here
    around `model.top_k`. A token that no expert took meets the shared experts alone.
    """

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        shared = config.shared_expert_width // config.width_of_expert
        factors = balancing_factors(config.experts, shared) if shared else ()
        # No buffer: it is known from the config alone, where a model is built without memory too, and stays fp32.
        self.factors_K = torch.tensor(factors, dtype=torch.float32, device="cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ECDLMRouter":
        super()._apply(fn, recurse)
        if (device := fn(self.factors_K).device).type != "meta":
            self.factors_K = self.factors_K.to(device)
        return self

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        assert given is not None, "this rule needs to know which tokens make a sequence"
        batch, length = given.tokens_BL.shape
        least, mean, highest = EC_DLM_K
        schedule = self.settings.k_schedule or "linear_reverse"
        k_B = (least + (highest - least) * share_of_range(given.ratio_B, schedule)).round().clamp(least, highest)
        # Whole numbers throughout, so that no rounding decides how many an expert takes.
        tokens, places = length * self.top_k, mean * self.experts
        most = min(length, max(1, tokens * (mean if schedule == "constant" else highest) // places))
        capacity_B = (tokens * k_B.long()).div(places, rounding_mode="floor").clamp(1, most)
        chosen_NE = taken(logits_NE / ALIKE_LOGITS, capacity_B, most)
        gates_NE = self._gates(logits_NE, scores_NE, chosen_NE)
        if len(self.factors_K):
            gates_NE = gates_NE * self.factors_K[chosen_NE.sum(-1, keepdim=True)]
        return Choice(gates_NE, _named(chosen_NE), batch * self.experts * most)

    def _gates(self, logits_NE: Tensor, scores_NE: Tensor, chosen_NE: Tensor) -> Tensor:
        if self.settings.scores == "sigmoid":
            gates_NE = scores_NE.masked_fill(~chosen_NE, 0.0)
            return gates_NE / gates_NE.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        left_N1 = ~chosen_NE.any(-1, keepdim=True)  # a softmax over nothing is NaN, and its gradient too
        gates_NE = logits_NE.masked_fill(~(chosen_NE | left_N1), -math.inf).softmax(-1)
        return gates_NE.masked_fill(~chosen_NE, 0.0)


def taken(ranked_NE: Tensor, capacity_B: Tensor, most: int) -> Tensor:
    """Choose the tokens of each expert: the highest of each sequence, as many as its capacity. Returns (N, E) bool.

    ranked_NE: (N, E), in units below which two are alike. capacity_B: (B,) int64, none above `most`. Tokens that say
    the same (every one of a wholly masked sequence) rank the same but for rounding, which depends on the device and its
    share of the batch: a stable order resolves them by place.
    """
    ranked_BLE = ranked_NE.detach().unflatten(0, (len(capacity_B), -1)).round()
    order_BCE = ranked_BLE.sort(dim=1, descending=True, stable=True).indices[:, :most]
    place_C = torch.arange(most, device=order_BCE.device)
    within_BCE = (place_C[None, :, None] < capacity_B[:, None, None]).expand_as(order_BCE)
    return torch.zeros_like(ranked_BLE, dtype=torch.bool).scatter_(1, order_BCE, within_BCE).flatten(0, 1)


@lru_cache(maxsize=16)
def balancing_factors(experts: int, shared: int) -> tuple[float, ...]:
    """By how many routed experts a token meets, 0 to all: what makes their gated sum as large as the shared experts' sum.

    The mean of sqrt(shared) / |p| over gates p that are the softmax of normal logits, experts' outputs being taken as
    orthogonal and of one size (arXiv 2604.01622's code, which simulates it too). 1 for none.
    """
    weights_SE = np.exp(np.random.default_rng(42).standard_normal((SAMPLES, experts)))
    sums_SE, squares_SE = weights_SE.cumsum(1), (weights_SE**2).cumsum(1)
    return (1.0, *(math.sqrt(shared) * (sums_SE / np.sqrt(squares_SE)).mean(0)).tolist())


def _named(chosen_NE: Tensor) -> Tensor:
    """The experts' numbers where chosen, -1 elsewhere."""
    experts_NE = torch.arange(chosen_NE.shape[1], device=chosen_NE.device).expand_as(chosen_NE)
    return experts_NE.masked_fill(~chosen_NE, -1)
