"""Preferences between responses: the policy's bounds against those of the model that it starts from (VRPO: LLaDA 1.5, arXiv
2505.19223)."""

from collections.abc import Callable

from torch import Tensor

from core.diffusion.batch import Batch
from core.diffusion.losses import preference_loss, preference_margins
from core.diffusion.objective import Objective
from core.diffusion.prediction import Prediction


class Preferences(Objective):
    """Chosen responses are preferred to rejected ones; the NELBO that is reported is that of the chosen ones."""

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
