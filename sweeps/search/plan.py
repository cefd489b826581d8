"""SearchPlan: a search resolved into its settings, rungs and groups, checked before anything is trained."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from core.config.loading import parse_overrides, text
from core.config.run import RunConfig, config_hash
from core.data.inputs import fingerprint
from core.records.designs import SearchDesign
from core.records.metrics import METRICS
from core.runtime.units import significant
from core.training.checks import check as check_run
from sweeps.search.checks import check
from sweeps.search.feasible import Resolver
from sweeps.search.rungs import rungs_of
from sweeps.search.spec import Choice, Search, arm_name, from_json, range_text, to_json
from sweeps.studies.plan import PlannedRun, Sweep
from sweeps.studies.study import CONFIRMATION_SEED, Level, edition_of


@dataclass(frozen=True)
class Group:
    """A part of a search that is tuned by itself, with the whole budget: one level of what is compared, or everything.

    study: its Optuna study, whose name changes with everything that makes trials comparable.
    """

    study: str
    fixed: Mapping[str, Level]

    @property
    def label(self) -> str:
        return ", ".join(text(level) for level in self.fixed.values())


@dataclass(frozen=True)
class SearchPlan(Sweep):
    """Everything that a search of one size is to do. It has no runs: they are drawn.

    search: the edition, resolved; settings: over it, shared by all.
    """

    design: SearchDesign
    search: Search
    settings: Mapping[str, Any]

    @property
    def configs(self) -> list[RunConfig]:
        return [self.resolver.control]

    @cached_property
    def resolver(self) -> Resolver:
        return Resolver(self.search, self.settings)

    @property
    def control_runs(self) -> tuple[PlannedRun, ...]:
        """The control's run under each seed of the search."""
        return self.runs_of(self.resolver.control_settings, self.resolver.control)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which configurations are compared; one, the last, where runs are never paused."""
        return self.design.rungs

    @property
    def groups(self) -> tuple[Group, ...]:
        identity = f"{self.study_name}#{self.design.identity}"
        key = self.search.compare
        if key is None:
            return (Group(identity, {}),)
        parameter = self.search.space[key]
        assert isinstance(parameter, Choice)
        return tuple(Group(f"{identity}@{text(level)}", {key: level}) for level in parameter.levels)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        return tuple(range(CONFIRMATION_SEED, CONFIRMATION_SEED + self.search.confirm))

    def runs_of(self, settings: Mapping[str, Level], config: RunConfig) -> tuple[PlannedRun, ...]:
        """A configuration's run under each seed of the search."""
        arm_hash = config_hash(config, with_seed=False)
        configs = [replace(config, seed=seed) for seed in self.search.seeds]
        arm, data = arm_name(arm_hash), fingerprint(config)
        return tuple(PlannedRun(arm, dict(settings), each, config_hash(each), arm_hash, data) for each in configs)

    def trial_field(self, run: PlannedRun, trial: int, group: Group) -> dict[str, Any]:
        """Reference from a run's record to its search and trial."""
        asked = {
            "identity": self.design.identity,
            "trial": trial,
            "group": group.label,
            "settings": dict(run.settings),
        }
        return self.study_field(run) | {"search": asked}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dictionaries, for `from_json` in another process: its design says everything."""
        return self.design.to_json()

    @classmethod
    def from_json(cls, content: Any) -> "SearchPlan":
        """The plan that `to_json` wrote."""
        return cls.of_design(SearchDesign.from_json(content))

    @classmethod
    def of_design(cls, design: SearchDesign) -> "SearchPlan":
        """The plan that a design was written for."""
        search, settings = from_json(design.declared), parse_overrides(design.overrides)
        return cls(design.ablation, design.size, design, (), search, settings)


def plan(name: str, search: Search, *, size: str = "full", overrides: Sequence[str] = ()) -> SearchPlan:
    """Resolve a declaration. Raises UserError for everything that would only fail, or mislead, once runs are trained."""
    settings = parse_overrides(overrides)
    edition = edition_of(name, search, size)
    check(edition, settings)
    resolver = Resolver(edition, settings)
    control = resolver.resolve(resolver.control_settings).config
    assert control is not None  # checked
    check_run(control, edition.resources.devices)
    trainer = control.trainer
    paused = edition.chosen_pruner in ("asha", "hyperband")
    control_hash, data = config_hash(control, with_seed=False), fingerprint(control)
    command = ["ablate", "run", name, *(["--size", size] if size != "full" else []), *overrides]
    design = SearchDesign(
        ablation=name,
        size=size,
        question=edition.question,
        identity=identity_of(edition, control_hash, data),
        metrics=edition.metrics,
        goals=tuple(METRICS[metric].goal for metric in edition.metrics),
        secondary=edition.secondary,
        control=arm_name(control_hash),
        control_settings=dict(resolver.control_settings),
        space={key: range_text(parameter) for key, parameter in edition.space.items()},
        compare=edition.compare,
        seeds=tuple(edition.seeds),
        rungs=rungs_of(trainer.steps, trainer.validate_every) if paused else (trainer.steps,),
        tokens_per_run=control.tokens_per_step * trainer.steps,
        tokens_per_step=control.tokens_per_step,
        sampler=edition.sampler,
        pruner=edition.chosen_pruner,
        trials=edition.budget.trials,
        tokens=edition.budget.tokens,
        data_fingerprint=data,
        devices=edition.resources.devices,
        overrides=tuple(overrides),
        command=shlex.join(command),
        declared=to_json(edition),
    )
    return SearchPlan(name, size, design, (), edition, settings)


def identity_of(search: Search, control: str, data: str) -> str:
    """Six hex digits that change with everything that makes trials comparable, and not with the budget.

    control: the hash of its config without the seed; data: the fingerprint.
    """
    content = to_json(search)
    kept = ("space", "metric", "match", "memory_gb", "sampler", "compare", "seeds", "seed")
    parts = {name: content[name] for name in kept} | {"pruner": search.chosen_pruner}
    parts["control"] = [control, data]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:6]


def differing(settings: Sequence[Mapping[str, Level]]) -> list[dict[str, Level]]:
    """Of each configuration the keys alone in which not all are equal."""
    keys = dict.fromkeys(key for one in settings for key in one)
    kept = [key for key in keys if len({repr(one.get(key, ...)) for one in settings}) > 1]
    return [{key: one[key] for key in kept if key in one} for one in settings]


def described(settings: Mapping[str, Level]) -> str:
    """A configuration as people read it: the last part of each key, and its value to four digits."""
    shown = ((key, significant(v, 4) if isinstance(v, float) else text(v)) for key, v in settings.items())
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in shown)
