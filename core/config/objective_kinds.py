"""Kinds of objectives: what is true of each, as planning and checks read it, without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from core.registry import Registry

Likelihood = Literal["exact", "bound", "tuned"]


@dataclass(frozen=True)
class ObjectiveKind:
    """A kind of objective.

    implementation: a subclass of core.diffusion.objective.Objective, or its name, "module:Class". causal: every token is
    predicted from those before it, and none is masked. responses: only the responses of a corpus of prompts and responses are
    learned. pairs: the corpus has a chosen and a rejected response to each prompt. reference: a copy of the network as it
    starts is asked too. likelihood: what the validation NELBO is: an "exact" negative log-likelihood, a "bound" on it, or
    that of a model "tuned" to something else. most_passes: over the same text, beyond which nothing more is learned.
    """

    name: str
    implementation: Any
    causal: bool = False
    responses: bool = False
    pairs: bool = False
    reference: bool = False
    likelihood: Likelihood = "bound"
    # Masked diffusion still gained in the longest run known, 480 passes (arXiv 2511.03276).
    most_passes: int = 500

    @property
    def masks_all(self) -> bool:
        """True for plain masked diffusion: any token of a sequence may be masked."""
        return not (self.causal or self.responses)


OBJECTIVES: Registry[ObjectiveKind] = Registry(
    "objective.kind",
    (
        ObjectiveKind("masked_diffusion", "core.diffusion.objective:Objective"),
        ObjectiveKind("sft", "core.diffusion.objective:Objective", responses=True),
        ObjectiveKind(
            "autoregressive",
            "core.diffusion.objectives.next_token:NextToken",
            causal=True,
            likelihood="exact",
            most_passes=40,  # dozens add nothing more to next-token prediction (arXiv 2305.16264)
        ),
        ObjectiveKind(
            "vrpo",
            "core.diffusion.objectives.preferences:Preferences",
            responses=True,
            pairs=True,
            reference=True,
            likelihood="tuned",
        ),
    ),
    folder="core.diffusion.objectives",
    light=False,
)
