"""Ablations: a question, the arms that it compares, and what answers it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from core.config.field_types import check_fields
from core.config.loading import flatten
from core.config.presets import Recipe
from core.errors import UserError
from sweeps.studies.arms import ArmSource, ResolvedArm, Shared
from sweeps.studies.decoders import Decoders
from sweeps.studies.factors import Contrasts, Factor, Factorial, Listed, check_listed
from sweeps.studies.ladder import Ladder
from sweeps.studies.recipes import Recipes
from sweeps.studies.study import (
    STUDY_KINDS,
    Level,
    Resources,
    StudyKind,
    check_decides,
    check_each_seed,
    check_metrics,
    check_seeds,
    check_sizes,
)

FACTORIAL = ("factors", "control", "arms", "contrasts", "match")  # fields that a ladder and recipes stand in for


@dataclass(frozen=True)
class Size:
    """A smaller or larger edition of an ablation: what it says replaces what the declaration says."""

    factors: tuple[Factor, ...] | None = None
    recipes: Mapping[str, Recipe] | None = None
    control: Mapping[str, Level] | None = None
    arms: Listed | None = None
    contrasts: Contrasts | None = None
    ladder: Ladder | None = None
    decoders: Decoders | None = None
    base: str | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # config settings over the ablation's own

    def __post_init__(self) -> None:
        if self.seeds is not None:
            check_seeds(self.seeds)
        if self.arms is not None:
            check_listed(self.arms)
        check_fields(self, skip=("seeds", "contrasts"))


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
    plugins: files (from the declaration's folder on) and packages whose components the runs use; a declaration that registers
        components itself needn't name its own file.
    decoders: how trained models are decoded, compared on the answers that each gives; `factors` may then be left out.
    """

    question: str
    factors: tuple[Factor, ...] = ()
    control: Mapping[str, Level] = field(default_factory=dict)
    base: str = "proxy"
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: Listed = "all"
    contrasts: Contrasts = ()
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
    plugins: Sequence[str] = ()

    kind: ClassVar[str] = "ablation"

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if self.recipes is not None:
            self._check_alone("recipes: they are the arms, matched on training FLOPs", (*FACTORIAL, "ladder"))
        if self.match not in (None, "active_flops"):
            raise UserError(f"match: unknown value {self.match!r}; use one of None, 'active_flops'")
        check_listed(self.arms)
        check_fields(self, skip=("seeds", "contrasts"))
        check_sizes(self.sizes)
        if self.ladder is not None:
            self._check_alone("ladder: its points are the arms", (*FACTORIAL, "decoders"))
        self.source  # noqa: B018  (refuses recipes that make no design)

    def _check_alone(self, what: str, others: Sequence[str]) -> None:
        if any(getattr(self, name) not in ((), {}, None, "all") for name in others):
            raise UserError(f"{what}; leave out {', '.join(others)}")

    @property
    def source(self) -> ArmSource:
        """Source of the arms."""
        if self.recipes is not None:
            return Recipes(self.recipes)
        return self.ladder or Factorial(
            self.factors, self.control, self.arms, self.contrasts, self.match, may_be_single=self.decoders is not None
        )

    def describe_parts(self, arms: Sequence[ResolvedArm]) -> dict[str, Any]:
        """Fields of a Design that only some ablations have. Raises UserError for models that can't be decoded as declared."""
        decoders = self.decoders and self.decoders.describe({each.arm.name: each.config for each in arms})
        return {"decoders": decoders, **self.source.describe()}

    def shared(self, overrides: Mapping[str, Any]) -> Shared:
        """The settings below all arms."""
        return Shared(self.base, self.settings, overrides)

    def sized(self, size: str) -> "Ablation":
        """The edition of that name; "full" is the declaration itself. A factor that it drops stays at its control level.

        Raises KeyError for a name not declared.
        """
        if size == "full":
            return self
        edition = self.sizes[size]
        changes = {
            name: value
            for name, value in vars(edition).items()
            if value or (value is not None and name in ("contrasts", "seeds"))
        }
        sized = replace(self, **changes | {"settings": {}, "sizes": {}})
        dropped = {factor.key for factor in self.factors} - {factor.key for factor in sized.factors}
        held = {key: level for key, level in sized.control.items() if key in dropped}
        return replace(
            sized,
            control={key: level for key, level in sized.control.items() if key not in dropped},
            settings={**held, **dict(flatten(self.settings)), **dict(flatten(edition.settings))},
            seeds=tuple(sized.seeds),
        )

    def with_seeds(self, seeds: Sequence[int]) -> "Ablation":
        sizes = {name: replace(size, seeds=None) for name, size in self.sizes.items()}
        return replace(self, seeds=tuple(seeds), sizes=sizes)

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Raise UserError, naming the field, and the nearest known names where one is unknown."""
        shared = self.shared(overrides)
        self.source.check(shared)
        shared.refuse({"seed": "the ablation's `seeds` set it"})
        check_metrics([self.metric], self.secondary)
        check_each_seed(self.seeds)
        check_decides(self.alpha, self.power, self.margin)


STUDY_KINDS.add(StudyKind("ablation", "ablation", Ablation))
