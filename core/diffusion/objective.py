"""Objectives: which tokens a network predicts, what it sees of them, and what is minimised.

`objective` registers a class as a kind of objective.kind; core.config.objective has those that come with the package.
Shapes as in core.diffusion.masking.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.config.objective import OBJECTIVES, ObjectiveKind
from core.config.run import RunConfig
from core.diffusion.batch import Batch
from core.diffusion.losses import context_weights, nelbo_per_token, preference_loss, preference_margins
from core.diffusion.masking import Masking, mask_tokens, mask_validation
from core.diffusion.prediction import Prediction
from core.registry import load


class Objective:
    """Masked diffusion: masked tokens are predicted from both sides (LLaDA-MoE, arXiv 2509.24389, Eq. 2 and 5).

    Other kinds override what they do otherwise.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.settings = config, config.objective

    def mask(self, batch: int, length: int, generator: torch.Generator, maskable_BL: Tensor | None = None) -> Masking:
        """Draw the predicted tokens of a training batch. maskable_BL: bool, those that may be; None: all."""
        return mask_tokens(batch, length, self.settings, generator, maskable_BL)

    def mask_validation(
        self, batch: int, length: int, generator: torch.Generator, maskable_BL: Tensor | None = None
    ) -> Masking:
        """The same of held-out sequences."""
        return mask_validation(batch, length, generator, maskable_BL)

    def input(self, batch: Batch) -> Tensor:
        """The tokens that the network sees, (B, L) int64: masked ones replaced by the mask."""
        mask = self.config.model.mask_id
        assert mask is not None  # RunConfig refuses a masking objective without one
        return batch.tokens_BL.masked_fill(batch.masking.masked_BL, mask)

    def losses(self, predicted: Prediction, batch: Batch, reference: Callable[[], Prediction]) -> tuple[Tensor, Tensor]:
        """The loss that trains, auxiliary losses apart, and the NELBO that is reported: both means, in nats per token.

        reference: asks the network as it was at the start of the same batch, where the kind has a reference.
        """
        nelbo = batch.mean(predicted.nelbo_B)
        return (nelbo if self.settings.weighting == "bound" else self._by_context(predicted, batch)), nelbo

    def validation(
        self, outputs: dict[str, Tensor], predicted: Prediction, batch: Batch, reference: Callable[[], Prediction]
    ) -> dict[str, Tensor]:
        """Validation values of a batch: "nelbo_B" and "ratio_B", and what the kind adds to them."""
        return outputs

    def _by_context(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Dream's loss, per token: masked tokens weighed by what is visible around them."""
        weight_BL = context_weights(batch.masking.masked_BL, self.settings.cart_p)
        sequence_M = batch.index_M.div(batch.tokens_BL.shape[1], rounding_mode="floor")
        weight_M = weight_BL.flatten().index_select(0, batch.index_M)
        return nelbo_per_token(predicted.cross_entropy_M, sequence_M, weight_M, batch.masking.length_B).mean()


class NextToken(Objective):
    """The cross-entropy of each token given those before it; sequences start with eos, so that all tokens are predicted."""

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


class Preferences(Objective):
    """Preferences between responses: the policy's bounds against those of the model that it starts from (VRPO: LLaDA 1.5,
    arXiv 2505.19223). The NELBO that is reported is that of the chosen responses."""

    def losses(self, predicted: Prediction, batch: Batch, reference: Callable[[], Prediction]) -> tuple[Tensor, Tensor]:
        nelbo = self._of_chosen(predicted.nelbo_B).mean()
        return preference_loss(self._margins(predicted, batch, reference)), nelbo

    def validation(
        self, outputs: dict[str, Tensor], predicted: Prediction, batch: Batch, reference: Callable[[], Prediction]
    ) -> dict[str, Tensor]:
        chosen = {name: self._of_chosen(values_B) for name, values_B in outputs.items()}
        return chosen | {"margin_P": self._margins(predicted, batch, reference)}

    def _margins(self, predicted: Prediction, batch: Batch, reference: Callable[[], Prediction]) -> Tensor:
        """Preference margins of a batch's pairs (P,), the reference asked under the same timesteps and masks."""
        nats = (values_B * batch.masking.length_B for values_B in (predicted.nelbo_B, reference().nelbo_B))
        own_P2, reference_P2 = (each.unflatten(0, (-1, 2, self.settings.draws)).mean(2) for each in nats)
        return preference_margins(own_P2, reference_P2, self.settings.beta)

    def _of_chosen(self, values_B: Tensor) -> Tensor:
        """The rows of chosen responses. values_B: pair by pair, side by side, draw by draw."""
        return values_B.unflatten(0, (-1, 2, self.settings.draws))[:, 0].flatten()


O = TypeVar("O", bound=type[Objective])  # noqa: E741


def objective(name: str, **traits: Any) -> Callable[[O], O]:
    """Register a class as objective.kind=name. traits: fields of core.config.objective.ObjectiveKind."""

    def register(cls: O) -> O:
        OBJECTIVES.add(ObjectiveKind(name, cls, **traits))
        return cls

    return register


def objective_of(config: RunConfig) -> Objective:
    """The objective that a config names."""
    made = load(config.objective.traits.implementation)(config)
    assert isinstance(made, Objective)
    return made
