"""Next-token prediction: the cross-entropy of each token given those before it."""

import torch
from torch import Tensor

from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.objective import Objective


class NextToken(Objective):
    """Every token that may be predicted is. Sequences start with eos, so that their first tokens are predicted too."""

    def mask(self, batch: int, length: int, generator: torch.Generator, maskable_BL: Tensor | None = None) -> Masking:
        maskable_BL = torch.ones(batch, length, dtype=torch.bool) if maskable_BL is None else maskable_BL
        ones_B = torch.ones(batch)
        return Masking(maskable_BL, ones_B, ones_B, maskable_BL.sum(1).float())

    mask_validation = mask

    def input(self, batch: Batch) -> Tensor:
        """The token before each."""
        eos = self.config.model.eos_id
        assert eos is not None  # RunConfig refuses the objective without it
        return torch.nn.functional.pad(batch.tokens_BL[:, :-1], (1, 0), value=eos)
