"""Routers that are controls: `soft` mixes all experts, `hash` and `random` learn nothing."""

import torch
from torch import Tensor

from core.model.attention import places
from core.model.routing import Choice, Conditions, Router, TopKRouter, hashed


class SoftRouter(TopKRouter):
    """A control: the dense mixture of all experts, weighted by their scores. Its compute is E / k times token choice's."""

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        return Choice(scores_NE, torch.arange(self.experts, device=scores_NE.device).expand_as(scores_NE))


class HashRouter(Router):
    """A control that learns nothing: k experts by a fixed hash of the token's id and the layer, gates 1 / k
    (Hash Layers, arXiv 2106.04426). All masked tokens have one id, so they share their experts."""

    def logits(self, x_ND: Tensor, given: Conditions | None) -> Tensor:
        return torch.zeros(len(x_ND), self.experts, device=x_ND.device)

    def choose(self, logits_NE: Tensor, scores_NE: Tensor, given: Conditions | None) -> Choice:
        assert given is not None, "this rule needs the tokens"
        draw_NE = hashed(self.keys(given)[:, None] * self.experts + torch.arange(self.experts, device=scores_NE.device))
        experts_NK = draw_NE.topk(self.top_k, dim=-1).indices
        return Choice(torch.full_like(experts_NK, 1 / self.top_k, dtype=torch.float32), experts_NK)

    def keys(self, given: Conditions) -> Tensor:
        """Key by which each token's experts are drawn. Returns (N,) int64."""
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
