"""The points of a ladder: every model on every number of tokens, with the steps at which it costs what it should."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.config.loading import build, flatten
from core.config.presets import preset
from core.config.run import RunConfig, get_field, to_dict
from core.data.corpora import load
from core.errors import UserError
from core.model.flops import count, flops_per_token
from core.runtime.units import short
from sweeps.studies.ablation import Ablation, Arm, Ladder

SOLVED = "trainer.steps"
TOLERANCE = 0.01  # of a budget: a run has a whole number of steps


@dataclass(frozen=True)
class Point:
    """A model on a number of tokens. flops, ratio: the budget, or the tokens per active parameter, that it was solved for.

    parameters: active ones.
    """

    family: str
    config: RunConfig
    parameters: int
    flops: float | None = None
    ratio: float | None = None

    @property
    def tokens(self) -> float:
        return self.config.tokens_per_step * self.config.trainer.steps

    def describe(self) -> dict[str, Any]:
        """As an arm of a design lists it: N and D are its "parameters" and these tokens; sparsity as ScalingLaw has it."""
        model = self.config.model
        return {
            "family": self.family,
            "tokens": self.tokens,
            "flops": flops_per_token(self.config) * self.tokens,
            "epochs": self.tokens / len(load(self.config.data).train_T),
            "budget": self.flops,
            "tokens_per_parameter": self.ratio,
            "sparsity": model.experts / model.experts_per_token if model.num_experts else 1.0,
            "granularity": float(model.granularity),
        }


def climb(ablation: Ablation, overrides: Mapping[str, Any]) -> list[Point]:
    """The points of a declaration's ladder, family by family, from the smallest model and the fewest tokens on.

    overrides: the command line's settings, over the declaration's. Raises UserError for settings that a ladder sets itself,
    models that can't be built or aren't in order of size, and budgets that no whole number of steps meets within 1 %.
    """
    ladder = ablation.ladder
    assert ladder is not None
    own = {key for models in ladder.families.values() for model in models for key, _ in flatten(model)} | {SOLVED}
    for source, settings in (("settings", dict(flatten(ablation.settings))), ("override", overrides)):
        if taken := own & set(settings):
            raise UserError(f"{source} {min(taken)}: the ladder sets it for each of its points; leave it out")
    points: dict[tuple[str, int, int], Point] = {}
    for family, models in ladder.families.items():
        for point in _of_family(family, _models(ablation, family, models, overrides), ladder):
            # A model may meet the same number of steps in both designs: it is trained once, for the first.
            points.setdefault((family, point.parameters, point.config.trainer.steps), point)
    if not points:
        raise UserError(
            f"ladder: no point has {ladder.between[0]:g} to {ladder.between[1]:g} tokens per parameter and at least "
            f"{ladder.least_steps} steps: widen `between` or lower `least_steps`"
        )
    return sorted(points.values(), key=lambda p: (list(ladder.families).index(p.family), p.parameters, p.tokens))


def arms_of(points: Sequence[Point]) -> tuple[Arm, ...]:
    """An arm for each point, by what differs between any two of them."""
    flat = [dict(flatten(to_dict(point.config))) for point in points]
    keys = [key for key, value in flat[0].items() if any(other[key] != value for other in flat)]
    arms = []
    for point in points:
        size, tokens = short(point.parameters), short(point.tokens)
        arms.append(
            Arm(
                name=f"{''.join(c if c.isalnum() else '-' for c in point.family)},N={size},D={tokens}",
                label=f"{point.family}, {size} x {tokens}",
                settings={key: get_field(point.config, key) for key in keys},
            )
        )
    names = [
        arm.name.lower() for arm in arms
    ]  # folders are named after them, on file systems that don't tell cases apart too
    if len(set(names)) < len(names):
        twin = next(arm.name for arm in arms if names.count(arm.name.lower()) > 1)
        raise UserError(f"ladder: two points are called {twin}: drop a budget or ratio that is nearly another")
    return tuple(arms)


def _models(
    ablation: Ablation, family: str, models: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]
) -> list[tuple[RunConfig, int]]:
    """Configs with their active parameters, in order of size."""
    found: list[tuple[RunConfig, int]] = []
    shared = to_dict(preset(ablation.base))
    for place, settings in enumerate(models):
        try:
            config = build(shared, ablation.settings, settings, overrides)
        except UserError as error:
            raise UserError(f"ladder: model {place + 1} of '{family}': {error}") from None
        size = count(config.model).active
        if found and size <= found[-1][1]:
            raise UserError(f"ladder: model {place + 1} of '{family}' isn't larger than the one before it")
        found.append((config, size))
    return found


def _of_family(family: str, models: Sequence[tuple[RunConfig, int]], ladder: Ladder) -> Iterator[Point]:
    low, high = ladder.between
    for config, parameters in models:
        step = config.tokens_per_step
        for flops in ladder.flops:
            exact = flops / flops_per_token(config) / step
            if not low <= exact * step / parameters <= high or exact < ladder.least_steps:
                continue
            off = max(1, round(exact)) / exact - 1
            if abs(off) > TOLERANCE:
                raise UserError(
                    f"ladder: {flops:.3g} FLOPs are {exact:.1f} steps of '{family}' at {short(parameters)} parameters, and "
                    f"whole ones are {off:+.1%} off: use smaller batches, larger budgets, or raise the lower end of `between`"
                )
            yield Point(family, _for(config, round(exact)), parameters, flops=flops)
        for ratio in ladder.tokens_per_parameter:
            steps = round(ratio * parameters / step)
            if steps >= max(1, ladder.least_steps):
                yield Point(family, _for(config, steps), parameters, ratio=ratio)


def _for(config: RunConfig, steps: int) -> RunConfig:
    return replace(config, trainer=replace(config.trainer, steps=steps))
