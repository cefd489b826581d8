"""Configuration of the objective and its auxiliary losses; and what is true of each kind, known without torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from core.config.options import filled
from core.errors import require, require_limit
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
    settings: a frozen dataclass of the kind's own settings (objective.options).
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
    settings: type[Any] | None = None

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
            "core.diffusion.objective:NextToken",
            causal=True,
            likelihood="exact",
            most_passes=40,  # dozens add nothing more to next-token prediction (arXiv 2305.16264)
        ),
        ObjectiveKind(
            "vrpo",
            "core.diffusion.objective:Preferences",
            responses=True,
            pairs=True,
            reference=True,
            likelihood="tuned",
        ),
    ),
    folder="core.diffusion.objectives",
    light=False,
)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Training objective and auxiliary losses (LLaDA-MoE, arXiv 2509.24389, Eq. 2, 4 and 5)."""

    # masked_diffusion: Eq. 2. sft: Eq. 5, only responses are masked. autoregressive: next-token cross-entropy. vrpo:
    # preference tuning on likelihood bounds (LLaDA 1.5, arXiv 2505.19223)
    kind: str = field(default="masked_diffusion", metadata={"registry": OBJECTIVES})
    epsilon: float = 1e-3  # the masking probability is (1 - epsilon) t + epsilon
    timesteps: Literal["stratified", "antithetic", "uniform"] = "stratified"  # how the timesteps of a batch are drawn
    exact_mask_count: bool = False  # mask a fixed number of tokens per timestep instead of each token independently
    # weight of a masked token in training. bound: 1 / masking probability. cart: by the visible context around it (Dream)
    weighting: Literal["bound", "cart"] = "bound"
    cart_p: float = 0.1  # parameter of CART's geometric kernel, which reaches about 1 / p tokens to either side
    # length of diffusion blocks over training. constant: model.block_length. wsd: rises from 1 to the whole sequence, stays
    # there, falls to model.block_length (LLaDA2.0)
    block_schedule: Literal["constant", "wsd"] = "constant"
    block_warmup: float = 0.1  # share of the steps over which the block length rises (block_schedule=wsd)
    block_decay: float = 0.1  # share of the steps over which the block length falls (block_schedule=wsd)
    beta: float = 0.2  # vrpo: factor of the difference between the bound and the reference's bound, per nat
    draws: int = 8  # vrpo: timesteps per response, each with one mask
    load_balancing_weight: float = 0.01  # weight of the load-balancing loss, which is 1 at balance
    z_loss_weight: float = 0.001  # weight of the router z-loss
    # settings of a kind of your own, by name
    options: dict[str, Any] = field(default_factory=dict, metadata={"options": OBJECTIVES})

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", filled(self.options, self.traits, "objective"))
        require_limit(self, "objective", "lie in (0, 1)", "epsilon", "cart_p")
        require_limit(self, "objective", "be positive", "beta")
        require_limit(self, "objective", "be at least 1", "draws")
        weights = ("load_balancing_weight", "z_loss_weight")
        require_limit(self, "objective", "not be negative", "block_warmup", "block_decay", *weights)
        require(
            self.block_warmup + self.block_decay <= 1,
            f"objective.block_warmup={self.block_warmup} and objective.block_decay={self.block_decay} are shares of the "
            "steps: together at most 1",
        )
        require(
            self.weighting == "bound" or not (self.traits.causal or self.traits.pairs),
            f"objective.weighting={self.weighting} weighs masked tokens by what is visible around them, and "
            f"objective.kind={self.kind} doesn't learn so: use bound",
        )

    @property
    def traits(self) -> ObjectiveKind:
        """Traits of this kind of objective."""
        return OBJECTIVES[self.kind]

    @property
    def settings(self) -> Any:
        """The options as the settings' dataclass of this kind."""
        return self.traits.settings and self.traits.settings(**self.options)

    @property
    def sequences(self) -> int:
        """Sequences that the network computes for each example of a batch: of a pair both sides, once for each draw."""
        return 2 * self.draws if self.traits.pairs else 1
