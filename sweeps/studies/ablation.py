"""The vocabulary of a declaration: a question, the factors that it varies, and what answers it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.config.field_types import check_fields
from core.config.loading import flatten
from core.config.recipes import Recipe
from core.errors import UserError
from core.runtime.printable import one_line

Level = str | int | float | bool | None
CONFIRM = "confirm"  # the size that a confirmation is known by
SIZE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MOST_SEEDS = 10_000
CONFIRMATION_SEED = 1000  # the first of the seeds that are kept for confirmations


@dataclass(frozen=True)
class Factor:
    """One thing that is varied: a config key and the levels that it takes."""

    key: str
    levels: tuple[Level, ...]
    label: str = ""  # how reports call it; the key's last part when left out

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple | list):
            raise UserError(f"factors: the levels of '{self.key}' must be a tuple, such as (1, 2), not {self.levels!r}")
        check_fields(self, f"factors: {one_line(repr(self.key))}: ")

    @property
    def name(self) -> str:
        return self.label or self.key.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Target:
    """A model that a ladder's law is extrapolated to. parameters: active ones; sparsity: experts / chosen experts."""

    parameters: float
    tokens: float
    sparsity: float = 1.0
    granularity: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "ladder: targets: ")


# LLaDA-MoE-7B-A1B (arXiv 2509.24389: 64 experts, top-8, 20T tokens before annealing), and ten times its parameters.
TARGETS = {"7B (1.4B active)": Target(1.4e9, 20e12, 8.0), "70B (14B active)": Target(14e9, 20e12, 8.0)}


@dataclass(frozen=True)
class Ladder:
    """Models of growing size on several numbers of tokens: what a scaling law is fitted to, instead of factors.

    families: by name, models of one kind as config settings, one for each size.
    flops: IsoFLOP design: at each of these training budgets every model gets the steps at which its run costs that.
    tokens_per_parameter: fixed-ratio design: every model gets so many tokens for each active parameter.
    between: fewest and most tokens per active parameter of an IsoFLOP point; others are left out, as a budget that suits
        a large model feeds a small one for ever.
    least_steps: shorter runs are left out of both designs: what a few steps reach says little about the law of many.
    targets: by name, where the law is extrapolated to.
    """

    families: Mapping[str, tuple[Mapping[str, Any], ...]]
    flops: tuple[float, ...] = ()
    tokens_per_parameter: tuple[float, ...] = ()
    between: tuple[float, float] = (0.0, float("inf"))
    least_steps: int = 1
    targets: Mapping[str, Target] = field(default_factory=lambda: dict(TARGETS))

    def __post_init__(self) -> None:
        check_fields(self, "ladder: ", endless=("between",))
        if not self.families or not all(self.families.values()):
            raise UserError("ladder: families must name at least one kind of model, each with its sizes as settings")
        for name in ("flops", "tokens_per_parameter"):
            if not all(value > 0 for value in getattr(self, name)):
                raise UserError(f"ladder: {name} must be positive, not {getattr(self, name)}")
        if not self.flops and not self.tokens_per_parameter:
            raise UserError("ladder: give flops (an IsoFLOP design), tokens_per_parameter (a fixed ratio), or both")


@dataclass(frozen=True)
class Decoders:
    """How every trained model is decoded afterwards, on the task that it was trained on: no run is trained for it, and no
    config knows of it.

    factors, control, arms: as an ablation's; their keys are fields of core.diffusion.sampling.Sampling, or tokens_per_call
        (steps are then length / tokens_per_call). A block_length of "full" is one block.
    settings: of the same keys, shared by all.
    examples: held-out prompts, the same for all models; decode_seeds: how often each is answered where that is by chance.
    margin: differences of exact match smaller than this don't matter; None = equivalence is not claimed.
    """

    factors: tuple[Factor, ...]
    control: Mapping[str, Level]
    arms: Literal["all", "one_at_a_time"] | tuple[Mapping[str, Level], ...] = "all"
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 256
    decode_seeds: int = 1
    margin: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "decoders: ")


@dataclass(frozen=True)
class Size:
    """A smaller or larger edition of an ablation: what it says replaces what the declaration says."""

    factors: tuple[Factor, ...] | None = None
    recipes: Mapping[str, Recipe] | None = None
    control: Mapping[str, Level] | None = None
    arms: Literal["all", "one_at_a_time"] | tuple[Mapping[str, Level], ...] | None = None
    contrasts: tuple[tuple[Mapping[str, Level], Mapping[str, Level]], ...] | None = None
    ladder: Ladder | None = None
    decoders: Decoders | None = None
    base: str | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # config settings over the ablation's own

    def __post_init__(self) -> None:
        if self.seeds is not None:
            check_seeds(self.seeds)
        if self.arms is not None:
            _check_arms(self.arms)
        check_fields(self, skip=("seeds", "contrasts"))


@dataclass(frozen=True)
class Resources:
    """What one run needs. devices: processes that train it together, a GPU each where there are any (see
    trainer.strategy=deepspeed)."""

    devices: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.devices, int) or self.devices < 1:
            raise UserError(f"resources: devices must be a whole number of at least 1, not {self.devices!r}")


@dataclass(frozen=True)
class Ablation:
    """A question and the design that answers it.

    factors: every combination of their levels is an arm, `control` one of them; `arms="one_at_a_time"` keeps only the
        control and the arms that differ from it in a single factor; a tuple of settings keeps the control and those: each
        says where it differs from the control.
    base: name of a preset in core.config.presets; `settings` are config settings over it, shared by all arms.
    contrasts: planned comparisons of two arms with each other, neither of them the control as a rule: pairs of settings,
        each saying where its arm differs from the control; the first minus the second is reported, in a family of its own.
    match: "active_flops" gives every arm the expert width at which its active FLOPs per token equal the control's.
    metric: what the verdict is about, a name in core.records.metrics (which says the better direction); `secondary` metrics
        are judged beside it.
    seeds: one block each: all arms of a seed share data order, masks, timesteps and initial weights
        (wherever shapes agree).
    margin: differences of the metric smaller than this don't matter; None = equivalence is not claimed.
    alpha: family-wise error rate over the arms of one metric.
    resources: what each run needs.
    ladder: models of growing size instead of factors and a control; what answers is a fitted law, not verdicts on arms.
    recipes: arms by name, each a bundle of settings, some with a first stage, instead of factors and a control; the first is
        the control. Each gets the steps at which its training, the first stage included, costs the control's FLOPs.
    decoders: how trained models are decoded, compared on the answers that each gives; `factors` may then be left out.
    """

    question: str
    factors: tuple[Factor, ...] = ()
    control: Mapping[str, Level] = field(default_factory=dict)
    base: str = "proxy"
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: Literal["all", "one_at_a_time"] | tuple[Mapping[str, Level], ...] = "all"
    contrasts: tuple[tuple[Mapping[str, Level], Mapping[str, Level]], ...] = ()
    match: Literal["active_flops"] | None = None
    metric: str = "val/nelbo"
    secondary: tuple[str, ...] = ()
    seeds: Sequence[int] = tuple(range(5))
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    sizes: Mapping[str, Size] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    ladder: Ladder | None = None
    decoders: Decoders | None = None
    recipes: Mapping[str, Recipe] | None = None

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if self.recipes is not None and (
            self.factors or self.control or self.arms != "all" or self.contrasts or self.match or self.ladder
        ):
            raise UserError(
                "recipes: they are the arms, matched on training FLOPs; leave out factors, control, arms, contrasts, match, "
                "ladder"
            )
        if self.recipes is not None and len(self.recipes) < 2:
            raise UserError("recipes: name at least two, the first of them the control")
        if self.match not in (None, "active_flops"):
            raise UserError(f"match: unknown value {self.match!r}; use one of None, 'active_flops'")
        _check_arms(self.arms)
        check_fields(self, skip=("seeds", "contrasts"))
        check_sizes(self.sizes)
        if self.ladder is not None and (
            self.factors or self.control or self.arms != "all" or self.contrasts or self.match or self.decoders
        ):
            raise UserError(
                "ladder: its points are the arms; leave out factors, control, arms, contrasts, match, decoders"
            )

    def sized(self, size: str) -> "Ablation":
        """The edition of that name; "full" is the declaration itself. Raises KeyError for a name not declared."""
        if size == "full":
            return self
        edition = self.sizes[size]
        return replace(
            self,
            factors=edition.factors or self.factors,
            control=edition.control or self.control,
            arms=self.arms if edition.arms is None else edition.arms,
            contrasts=self.contrasts if edition.contrasts is None else edition.contrasts,
            ladder=edition.ladder or self.ladder,
            recipes=edition.recipes or self.recipes,
            decoders=edition.decoders or self.decoders,
            base=edition.base or self.base,
            seeds=tuple(edition.seeds) if edition.seeds is not None else self.seeds,
            settings=dict(flatten(self.settings)) | dict(flatten(edition.settings)),
            sizes={},
        )


@dataclass(frozen=True)
class Arm:
    """One setting of all factors."""

    name: str  # unique in its design and fit for a file name
    label: str  # for people
    settings: Mapping[str, Any]  # factor levels, by config key


def _check_arms(arms: object) -> None:
    if arms in ("all", "one_at_a_time"):
        return
    if not isinstance(arms, tuple) or not arms or not all(isinstance(arm, Mapping) and arm for arm in arms):
        raise UserError(
            f"arms: unknown value {arms!r}; use 'all', 'one_at_a_time', or a tuple of settings, such as "
            "({'model.top_k': 4},)"
        )


def check_seeds(seeds: object) -> None:
    """Refuse seeds that are no list, or so many that a plan of them would fill the memory."""
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise UserError(f"seeds: a list of whole numbers is needed, such as range(5), not {seeds!r}")
    if seeds[MOST_SEEDS:]:
        raise UserError(f"seeds: they are more than a sweep can have: at most {MOST_SEEDS}")


def check_sizes(names: Iterable[str]) -> None:
    """Refuse the name of an edition that can't name a folder, or that names another one already."""
    for name in names:
        if SIZE.fullmatch(name) is None:
            raise UserError(f"sizes: {name!r}: a name needs letters, digits, '-', '_' and '.', as it names a folder")
        if name == "full" or name.split(".")[-1] == CONFIRM:
            raise UserError(f"sizes: {name!r} is the name of the declaration itself or of a confirmation: take another")


def study_name(name: str, size: str) -> str:
    """What a size of an ablation is called in storages, folders and W&B groups."""
    return name if size == "full" else f"{name}.{size}"


def confirm_size(size: str) -> str:
    """What the edition that confirms another's winner is called."""
    return f"{size}.{CONFIRM}"
