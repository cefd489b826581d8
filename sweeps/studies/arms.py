"""Arms of a design: what each trains, and how a design describes it.

An ArmSource (factors, a ladder, recipes) resolves a declaration's settings into arms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.config.loading import flatten
from core.config.presets import preset
from core.config.run import RunConfig, config_hash, content_hash, get_field, to_dict
from core.errors import UserError
from core.model.flops import count, flops_per_token
from core.records.designs import DesignArm, DesignFactor, Likelihood, ParameterCounts
from core.records.likelihood_kind import ACROSS, incomparable
from sweeps.studies.plan import PlannedRun
from sweeps.studies.study import check_settings


@dataclass(frozen=True)
class Arm:
    """One setting of all factors."""

    name: str  # unique in its design and fit for a file name
    label: str  # for people
    settings: Mapping[str, Any]  # factor levels, by config key


@dataclass(frozen=True)
class ResolvedArm:
    """An arm and the config that it trains; first: the config of a first stage."""

    arm: Arm
    config: RunConfig
    first: RunConfig | None = None

    def details(self) -> dict[str, Any]:
        """Fields of the DesignArm that other arms don't have. Reads data."""
        return {}


@dataclass(frozen=True)
class Shared:
    """Settings below all arms: those of a preset, the declaration's over them, the command line's over both."""

    base: str
    settings: Mapping[str, Any]
    overrides: Mapping[str, Any]

    @property
    def layers(self) -> tuple[Mapping[str, Any], ...]:
        return to_dict(preset(self.base)), self.settings, self.overrides

    def refuse(self, taken: Mapping[str, str]) -> None:
        """Refuse settings and overrides that something else sets. taken: by key, what sets it."""
        check_settings(self.settings, self.overrides, taken)


class ArmSource:
    """Base of whatever the arms of an ablation come from. The first arm is the control."""

    def check(self, shared: Shared) -> None:
        """Raise UserError for what can't be resolved, as far as this shows at once."""

    def resolve(self, shared: Shared) -> Sequence[ResolvedArm]:
        """The arms with their configs. Raises UserError for arms that can't be built."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Size of the design: its number of arms, or what else is counted."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Fields of a Design that tell of the source itself."""
        return {}

    def alone(self, control: DesignArm, arm: DesignArm) -> dict[str, Any]:
        """Fields of an ablation of the control and one arm alone. Raises UserError where arms aren't compared."""
        raise UserError("an arm is confirmed beside its control, which this study doesn't have")

    def factors(self, arms: Sequence[ResolvedArm]) -> tuple[DesignFactor, ...]:
        """Factors that differ between the arms."""
        levels = {key: tuple(dict.fromkeys(each.arm.settings[key] for each in arms)) for key in arms[0].arm.settings}
        return tuple(DesignFactor(key, key.rsplit(".", 1)[-1], of_key) for key, of_key in levels.items())

    def contrasts(self, arms: Sequence[ResolvedArm]) -> tuple[tuple[str, str], ...]:
        """The names of the two arms of every planned contrast."""
        return ()

    def notes(self, arm: ResolvedArm, control: ResolvedArm, metrics: Sequence[str]) -> list[str]:
        """Notes on what makes an arm hard to compare with the control."""
        return comparison_notes(arm.config, control.config)


def differences(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """The settings of each config that aren't the same in all."""
    flat = [dict(flatten(to_dict(config))) for config in configs]
    keys = [key for key, value in flat[0].items() if any(other[key] != value for other in flat)]
    return [{key: get_field(config, key) for key in keys} for config in configs]


def describe_arm(arm: Arm, config: RunConfig) -> DesignArm:
    """An arm as a design lists it."""
    model, notes = config.model, []
    if model.num_experts and model.router.traits.sees_sequence:
        notes.append("a token's experts depend on the other tokens of its sequence")
    if model.num_experts and model.router.traits.all_experts:
        notes.append(f"every token meets all {model.experts} experts")
    return DesignArm(
        name=arm.name,
        label=arm.label,
        settings=dict(arm.settings),
        hash=config_hash(config, with_seed=False),
        parameters=ParameterCounts(**asdict(count(model))),
        flops_per_token=flops_per_token(config),
        likelihood=_likelihood(config),
        notes=tuple(notes),
    )


def _likelihood(config: RunConfig) -> Likelihood:
    from core.data.corpora import likelihood  # numpy, which mistakes in declarations are refused without

    return likelihood(config)


def comparison_notes(config: RunConfig, control: RunConfig, metrics: Sequence[str] = ()) -> list[str]:
    """Notes on two arms whose likelihoods aren't of one kind, or whose MaxVio, if it is judged, have different maxima."""
    one, other, notes = _likelihood(config), _likelihood(control), list[str]()
    if reason := incomparable(one, other):
        notes.append(reason)
    elif one.kind != other.kind:
        notes.append(ACROSS)
    model, base = config.model, control.model
    if "load/max_vio" in metrics and model.experts * base.top_k != base.experts * model.top_k:
        notes.append("MaxVio isn't comparable here: its maximum is E/k − 1, which differs between arms")
    return notes


def planned_runs(arms: Iterable[tuple[ResolvedArm, str, str]], seeds: Sequence[int]) -> tuple[PlannedRun, ...]:
    """Every arm's run under every seed, block by block. arms: each with the fingerprints of its data and of its first
    stage's."""
    by_arm = [_runs(*each, seeds) for each in arms]
    return tuple(run for block in zip(*by_arm, strict=True) for run in block)


def _runs(each: ResolvedArm, data: str, first_data: str, seeds: Sequence[int]) -> list[PlannedRun]:
    content, first = to_dict(each.config), each.first  # once: of a thousand seeds it would take seconds
    arm_hash = content_hash(content, with_seed=False)
    return [
        PlannedRun(
            arm=each.arm.name,
            settings=dict(each.arm.settings),
            config=replace(each.config, seed=seed),
            run_hash=content_hash(content | {"seed": seed}),
            arm_hash=arm_hash,
            fingerprint=data,
            first=None if first is None else replace(first, seed=seed),
            first_fingerprint=first_data,
        )
        for seed in seeds
    ]
