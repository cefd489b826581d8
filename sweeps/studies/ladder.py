"""Ladder: models of growing size on several numbers of tokens, each trained for the steps that its budget allows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from core.config.field_types import check_fields
from core.config.loading import build, flatten
from core.config.run import RunConfig
from core.errors import UserError
from core.model.flops import count, flops_per_token
from core.records.designs import LadderDesign, LadderPoint, LadderTarget
from core.runtime.units import short
from sweeps.studies.arms import Arm, ArmSource, ResolvedArm, Shared, differences

SOLVED = "trainer.steps"
TOLERANCE = 0.01  # of a budget: a run has a whole number of steps


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


@dataclass(frozen=True, kw_only=True)
class PointArm(ResolvedArm):
    """A model on a number of tokens. flops, ratio: the budget, or the tokens per active parameter, that it was solved for.

    parameters: active ones.
    """

    family: str
    parameters: int
    flops: float | None = None
    ratio: float | None = None

    @property
    def tokens(self) -> float:
        return _tokens(self.config)

    def details(self) -> dict[str, Any]:
        """Its N and D are the arm's "parameters" and these tokens; sparsity as ScalingLaw has it."""
        from core.data.corpora import load  # numpy, which mistakes in declarations are refused without

        model = self.config.model
        point = LadderPoint(
            family=self.family,
            tokens=self.tokens,
            flops=flops_per_token(self.config) * self.tokens,
            epochs=self.tokens / len(load(self.config.data).train_T),
            budget=self.flops,
            tokens_per_parameter=self.ratio,
            sparsity=model.experts / model.experts_per_token if model.num_experts else 1.0,
            granularity=float(model.granularity),
        )
        return {"point": point}


@dataclass(frozen=True)
class Ladder(ArmSource):
    """Models of growing size on several numbers of tokens, for the fit of a scaling law.

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

    def check(self, shared: Shared) -> None:
        keys = [key for models in self.families.values() for model in models for key, _ in flatten(model)]
        shared.refuse(dict.fromkeys([*keys, SOLVED], "the ladder sets it for each of its points"))

    def resolve(self, shared: Shared) -> list[PointArm]:
        """The points, family by family, from the smallest model and the fewest tokens on.

        Raises UserError for models that can't be built or aren't in order of size, and budgets that no whole number of steps
        meets within 1 %.
        """
        points: dict[tuple[str, int, int], PointArm] = {}
        for family, models in self.families.items():
            for point in self._of_family(family, _models(shared, family, models)):
                # A model may meet the same number of steps in both designs: it is trained once, for the first.
                points.setdefault((family, point.parameters, point.config.trainer.steps), point)
        if not points:
            raise UserError(
                f"ladder: no point has {self.between[0]:g} to {self.between[1]:g} tokens per parameter and at least "
                f"{self.least_steps} steps: widen `between` or lower `least_steps`"
            )
        families = list(self.families)
        arms = sorted(points.values(), key=lambda p: (families.index(p.family), p.parameters, p.tokens))
        times = Counter(each.arm.name.lower() for each in arms)  # folders' names, on file systems that ignore case too
        if twin := next((each.arm.name for each in arms if times[each.arm.name.lower()] > 1), None):
            raise UserError(f"ladder: two points are called {twin}: drop a budget or ratio that is nearly another")
        settings = differences([each.config for each in arms])
        return [replace(each, arm=replace(each.arm, settings=own)) for each, own in zip(arms, settings, strict=True)]

    def summary(self) -> dict[str, Any]:
        return {"models": sum(map(len, self.families.values())), "arms": None}

    def describe(self) -> dict[str, Any]:
        targets = {name: LadderTarget(**asdict(target)) for name, target in self.targets.items()}
        return {"ladder": LadderDesign(targets)}

    def _of_family(self, family: str, models: Sequence[tuple[RunConfig, int]]) -> Iterator[PointArm]:
        low, high = self.between
        for config, parameters in models:
            step = config.tokens_per_step
            for flops in self.flops:
                exact = flops / flops_per_token(config) / step
                if not low <= exact * step / parameters <= high or exact < self.least_steps:
                    continue
                off = max(1, round(exact)) / exact - 1
                if abs(off) > TOLERANCE:
                    raise UserError(
                        f"ladder: {flops:.3g} FLOPs are {exact:.1f} steps of '{family}' at {short(parameters)} parameters, "
                        f"and whole ones are {off:+.1%} off: use smaller batches, larger budgets, or raise the lower end of "
                        "`between`"
                    )
                yield _point(family, with_steps(config, round(exact)), parameters, flops=flops)
            for ratio in self.tokens_per_parameter:
                steps = round(ratio * parameters / step)
                if steps >= max(1, self.least_steps):
                    yield _point(family, with_steps(config, steps), parameters, ratio=ratio)


def _tokens(config: RunConfig) -> float:
    return config.tokens_per_step * config.trainer.steps


def _point(
    family: str, config: RunConfig, parameters: int, *, flops: float | None = None, ratio: float | None = None
) -> PointArm:
    size, tokens = short(parameters), short(_tokens(config))
    name = "".join(c if c.isalnum() else "-" for c in family)
    arm = Arm(f"{name},N={size},D={tokens}", f"{family}, {size} x {tokens}", {})
    return PointArm(arm, config, family=family, parameters=parameters, flops=flops, ratio=ratio)


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """The same config, trained for so many steps."""
    return replace(config, trainer=replace(config.trainer, steps=steps))


def _models(shared: Shared, family: str, models: Sequence[Mapping[str, Any]]) -> list[tuple[RunConfig, int]]:
    """Configs with their active parameters, in order of size."""
    found: list[tuple[RunConfig, int]] = []
    base, settings, overrides = shared.layers
    for place, model in enumerate(models):
        try:
            config = build(base, settings, model, overrides)
        except UserError as error:
            raise UserError(f"ladder: model {place + 1} of '{family}': {error}") from None
        size = count(config.model).active
        if found and size <= found[-1][1]:
            raise UserError(f"ladder: model {place + 1} of '{family}' isn't larger than the one before it")
        found.append((config, size))
    return found
