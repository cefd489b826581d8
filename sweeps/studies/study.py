"""Study protocol, and what all kinds of study share: sizes, seeds, names, and the checks of these.

A declaration is an object of a class that keeps the protocol. `STUDY_KINDS` knows such classes by the `kind` of the designs
that they resolve to, and by the variable that a declaration's file binds an object to.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol, Self, TypeVar

from core.config.loading import flatten
from core.errors import UserError
from core.records.metrics import METRICS
from core.registry import Registry, nearest
from core.runtime.json_files import is_whole

Level = str | int | float | bool | None
CONFIRM = "confirm"  # the size that a confirmation is known by
SIZE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MOST_SEEDS = 10_000
CONFIRMATION_SEED = 1000  # the first of the seeds that are kept for confirmations


@dataclass(frozen=True)
class Resources:
    """Resources of one run. devices: processes that train it together, a GPU each where there are any (see
    trainer.strategy=deepspeed)."""

    devices: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.devices, int) or self.devices < 1:
            raise UserError(f"resources: devices must be a whole number of at least 1, not {self.devices!r}")


class Study(Protocol):
    """A declaration of any kind: a question, and how it is answered.

    sizes: editions by name, each as the fields that it changes. kind: the name of its StudyKind.
    """

    kind: ClassVar[str]

    @property
    def question(self) -> str: ...
    @property
    def sizes(self) -> Mapping[str, Any]: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def plugins(self) -> Sequence[str]: ...

    def sized(self, size: str) -> Self:
        """The edition of that name; "full" is the declaration itself. Raises KeyError for a name not declared."""

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """The same question on other seeds, in every size."""


@dataclass(frozen=True)
class StudyKind:
    """A kind of study.

    name: what its designs say as their `kind`. variable: what a declaration's file calls it. implementation: the class that
    declares it. operations: the module that queues, reads and checks its runs (sweeps.kinds.Operations).
    planner, checker: the functions behind `plan` and `check`, as "module:name": they load numpy or Optuna, which reading a
    declaration does without. No checker: the declaration's own method `check`.
    """

    name: str
    variable: str
    implementation: type[Any]
    operations: str = "sweeps.runs.operations"
    planner: str = "sweeps.studies.resolve:plan"
    checker: str = ""

    @property
    def has_arms(self) -> bool:
        """True if its designs have arms, each trained on seeds."""
        return self.operations == StudyKind.operations

    def plan(self, name: str, study: Study, *, size: str = "full", overrides: Sequence[str] = ()) -> Any:
        """The plan of an edition. overrides: `key=value` settings over its own.

        Raises UserError for everything that would only fail, or mislead, once runs are trained.
        """
        return resolve_name(self.planner)(name, study, size=size, overrides=overrides)

    def check(self, study: Study, overrides: Mapping[str, Any]) -> None:
        """Raise UserError, naming the field, for what can't be planned with the command line's settings."""
        own: Any = study
        if self.checker:
            resolve_name(self.checker)(study, overrides)
        else:
            own.check(overrides)


S = TypeVar("S", bound=Study)
STUDY_KINDS: Registry[StudyKind] = Registry("kind of study")


def edition_of(name: str, study: S, size: str) -> S:
    """The edition of that size. Raises UserError for a size that isn't declared."""
    try:
        return study.sized(size)
    except KeyError:
        raise UserError(f"unknown size '{size}' of '{name}': {nearest(size, ['full', *study.sizes])}") from None


def first_seeds(study: S, count: int | None) -> S:
    """The same question on seeds 0 .. count - 1, in every size; as it is where `count` is None."""
    if count is None:
        return study
    if count < 1:
        raise UserError(f"--seeds must be at least 1, not {count}")
    if count > MOST_SEEDS:
        raise UserError(f"--seeds {count} are more than a sweep can have: at most {MOST_SEEDS}")
    return study.with_seeds(tuple(range(count)))


def study_name(name: str, size: str) -> str:
    """Name of a size of a study in storages, folders and W&B groups."""
    return name if size == "full" else f"{name}.{size}"


def confirm_size(size: str) -> str:
    """Name of the edition that confirms another's winner."""
    return f"{size}.{CONFIRM}"


def check_seeds(seeds: object) -> None:
    """Refuse seeds that are no list, or so many that a plan of them would fill the memory."""
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise UserError(f"seeds: a list of whole numbers is needed, such as range(5), not {seeds!r}")
    if seeds[MOST_SEEDS:]:
        raise UserError(f"seeds: they are more than a sweep can have: at most {MOST_SEEDS}")


def check_each_seed(seeds: Iterable[int]) -> None:
    """Refuse seeds that no run can have, that repeat, or that are none at all."""
    seeds = list(seeds)
    if not seeds:
        raise UserError("seeds: there are none; list at least one, such as range(5)")
    for seed in seeds:
        if not is_whole(seed) or seed < 0:
            raise UserError(f"seeds: {seed!r} is not a whole number from 0 on, below 2**63")
        if seeds.count(seed) > 1:
            raise UserError(f"seeds: {seed} is listed twice; the same seed gives the same run, not another sample")


def check_sizes(names: Iterable[str]) -> None:
    """Refuse the name of an edition that can't name a folder, or that names another one already."""
    for name in names:
        if SIZE.fullmatch(name) is None:
            raise UserError(f"sizes: {name!r}: a name needs letters, digits, '-', '_' and '.', as it names a folder")
        if name == "full" or name.split(".")[-1] == CONFIRM:
            raise UserError(f"sizes: {name!r} is the name of the declaration itself or of a confirmation: take another")


def check_metrics(metrics: Sequence[str], secondary: Sequence[str]) -> None:
    """Refuse metrics that are unknown or named twice."""
    named = [("metric", metric) for metric in metrics] + [("secondary", metric) for metric in secondary]
    for place, (field, metric) in enumerate(named):
        if metric not in METRICS:
            raise UserError(f"{field}: unknown metric '{metric}': {nearest(metric, METRICS)}")
        if metric in [before for _, before in named[:place]]:
            raise UserError(f"{field}: '{metric}' is judged already; list every metric once")


def check_decides(alpha: float, power: float, margin: float | None) -> None:
    """Refuse numbers that no verdict can be made by."""
    for field, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise UserError(f"{field} must lie in (0, 1), not {value}")
    check_margin(margin)


def check_margin(margin: float | None, prefix: str = "") -> None:
    """Refuse a margin that isn't positive."""
    if margin is not None and not margin > 0:
        raise UserError(f"{prefix}margin must be positive, not {margin}; None means that equivalence isn't claimed")


def check_settings(settings: Mapping[str, Any], overrides: Mapping[str, Any], taken: Mapping[str, str]) -> None:
    """Refuse settings of a declaration, or of the command line, that something else sets. taken: by key, what sets it."""
    for source, given in (("settings", dict(flatten(settings))), ("override", overrides)):
        for key in given:
            if key in taken:
                raise UserError(f"{source} {key}: {taken[key]}; leave it out")
