"""Token choice whose number of experts a token follows the mask ratio."""

import torch
from torch import Tensor

from core.model.routing import Conditions, TopKRouter, share_of_mean


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
