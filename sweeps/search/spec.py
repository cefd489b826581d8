"""Search: the declaration of a search, the ranges of its space, and its budget."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from core.config.field_types import check_fields
from core.config.loading import flatten
from core.errors import UserError
from sweeps.studies.study import STUDY_KINDS, Level, Resources, StudyKind, check_seeds, check_sizes

When = Mapping[str, tuple[Level, ...]]  # the parameter exists where every key has one of these values


@dataclass(frozen=True)
class Log:
    """A positive number on a logarithmic scale; `zero` makes exactly 0 a choice beside the range."""

    low: float
    high: float
    zero: bool = False
    when: When = field(default_factory=dict)

    def holds(self, value: Level) -> bool:
        return _is_number(value) and (self.low <= float(value) <= self.high or (self.zero and value == 0))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Uniform:
    """A number on a linear scale."""

    low: float
    high: float
    when: When = field(default_factory=dict)

    def holds(self, value: Level) -> bool:
        return _is_number(value) and self.low <= float(value) <= self.high  # type: ignore[arg-type]


@dataclass(frozen=True)
class Int:
    """A whole number of low, low + step, ...; `log` spaces them logarithmically (step 1)."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: When = field(default_factory=dict)

    def holds(self, value: Level) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0  # type: ignore[operator]


@dataclass(frozen=True)
class Choice:
    """One of a few values without an order."""

    levels: tuple[Level, ...]
    when: When = field(default_factory=dict)

    def holds(self, value: Level) -> bool:
        return any(value == level and isinstance(value, bool) == isinstance(level, bool) for level in self.levels)


Parameter = Log | Uniform | Int | Choice
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Log, Uniform, Int, Choice)}


@dataclass(frozen=True)
class Budget:
    """Budget of a search: a number of configurations, or of training tokens, over all their seeds."""

    trials: int | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "budget: ")
        given = [value for value in (self.trials, self.tokens) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise UserError("budget: name a positive number of trials or of tokens, such as Budget(trials=64)")


UNGUIDED = ("random", "qmc")  # samplers that don't look at values


@dataclass(frozen=True)
class Search:
    """A question that a search answers, and how.

    space: the range of each config key that is searched. control: the configuration that the winner must beat; keys
        left out have the base config's values. Both must fit: the control is a point of the space.
    base, settings: as an ablation's. match: "active_flops" gives every configuration the expert width at which it
        costs what the control costs. memory_gb: limit on an estimate of parameters, gradients and AdamW's moments in
        fp32 (16 bytes a parameter; activations aren't counted). What can't be built or breaks a limit isn't trained.
    metric: what is searched for, a name in core.records.metrics; several names are several objectives, answered by the Pareto
        front. secondary: what the confirmation reports beside them.
    sampler: "tpe", "cma_es", "nsga2", "qmc" or "random". pruner: "asha" or "hyperband" over training tokens, which go on
        with promising runs from their checkpoints; "wilcoxon" over seeds; "none". Left out: asha for one objective.
    compare: a Choice of the space, each of whose levels is tuned by itself with the whole budget: baselines get what
        the proposal gets.
    seeds: trained inside each configuration, whose value is their mean. confirm: fresh seeds on which the winner and
        the control are trained in the end; theirs are the estimates to report.
    plugins: as an ablation's. seed: of the sampler. sizes: editions by name, as the fields that they change (settings are
        merged).
    """

    question: str
    space: Mapping[str, Parameter]
    control: Mapping[str, Level] = field(default_factory=dict)
    base: str = "proxy"
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: str | tuple[str, ...] = "val/nelbo"
    secondary: tuple[str, ...] = ()
    match: str | None = None
    memory_gb: float | None = None
    sampler: str = "tpe"
    pruner: str | None = None
    compare: str | None = None
    budget: Budget = field(default_factory=lambda: Budget(trials=48))
    seeds: Sequence[int] = (0,)
    confirm: int = 8
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    seed: int = 0
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    plugins: Sequence[str] = ()

    kind: ClassVar[str] = "search"

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        space = self.space if isinstance(self.space, Mapping) else {}
        for key, parameter in space.items():
            if not isinstance(parameter, Parameter):
                raise UserError(f"space: '{key}' must be one of {', '.join(KINDS)}, not {parameter!r}")
            bounds = [name for name in ("low", "high") if isinstance(getattr(parameter, name, None), int | float)]
            check_fields(parameter, f"space: '{key}': ", skip=bounds)  # what bounds may be depends on the key
        check_fields(self, skip=("seeds",))
        check_sizes(self.sizes)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def guided(self) -> bool:
        """True if the sampler proposes by what it has seen: then its configurations aren't independent draws."""
        return self.sampler not in UNGUIDED

    @property
    def chosen_pruner(self) -> str:
        return self.pruner or ("asha" if len(self.metrics) == 1 else "none")

    def sized(self, size: str) -> "Search":
        """The edition of that name; "full" is the declaration itself. Raises KeyError for a name not declared."""
        if size == "full":
            return self
        changes = dict(self.sizes[size])
        unknown = [name for name in changes if name not in {entry.name for entry in fields(self)} - {"sizes"}]
        if unknown:
            raise UserError(f"sizes: '{size}' changes '{unknown[0]}', which is no field of a search")
        changes["settings"] = dict(flatten(self.settings)) | dict(flatten(changes.get("settings", {})))
        return replace(self, **changes, sizes={})

    def with_seeds(self, seeds: Sequence[int]) -> "Search":
        sizes = {size: {k: v for k, v in changes.items() if k != "seeds"} for size, changes in self.sizes.items()}
        return replace(self, seeds=tuple(seeds), sizes=sizes)


STUDY_KINDS.add(
    StudyKind(
        "search",
        "search",
        Search,
        operations="sweeps.search.operations",
        planner="sweeps.search.plan:plan",
        checker="sweeps.search.checks:check",
    )
)


def arm_name(config_hash: str) -> str:
    """The folder of a configuration's runs, by the hash of its config without the seed."""
    return f"c-{config_hash[:10]}"


def range_text(parameter: Parameter) -> str:
    """A range as people read it: "0.0001 to 1, logarithmic, or 0"."""
    if isinstance(parameter, Choice):
        said = ", ".join(map(str, parameter.levels))
    else:
        said = f"{parameter.low:g} to {parameter.high:g}"
        said += f" by {parameter.step}" if isinstance(parameter, Int) and parameter.step > 1 else ""
        said += ", logarithmic" if isinstance(parameter, Log) or (isinstance(parameter, Int) and parameter.log) else ""
        said += ", or 0" if isinstance(parameter, Log) and parameter.zero else ""
    conditions = (f"{key} is {' or '.join(map(str, levels))}" for key, levels in parameter.when.items())
    return f"{said}; where {' and '.join(conditions)}" if parameter.when else said


def to_json(search: Search) -> dict[str, Any]:
    """A search as plain dictionaries, for `from_json`; its sizes are left out."""
    content = {
        entry.name: getattr(search, entry.name) for entry in fields(search) if entry.name not in ("sizes", "plugins")
    }
    content["space"] = {key: {"kind": type(p).__name__, **asdict(p)} for key, p in search.space.items()}
    content |= {"budget": asdict(search.budget), "resources": asdict(search.resources)}
    content |= {"metric": list(search.metrics), "seeds": list(search.seeds), "secondary": list(search.secondary)}
    return content | {"settings": dict(search.settings), "control": dict(search.control)}


def from_json(content: Mapping[str, Any]) -> Search:
    """The search that `to_json` wrote."""
    space = {}
    for key, entry in content["space"].items():
        settings = {
            name: tuple(value) if name == "levels" else value for name, value in entry.items() if name != "kind"
        }
        settings["when"] = {name: tuple(levels) for name, levels in entry["when"].items()}
        space[key] = KINDS[entry["kind"]](**settings)
    metrics = tuple(content["metric"])
    changed = {
        "space": space,
        "budget": Budget(**content["budget"]),
        "resources": Resources(**content["resources"]),
        "metric": metrics[0] if len(metrics) == 1 else metrics,
        "secondary": tuple(content["secondary"]),
        "seeds": tuple(content["seeds"]),
    }
    return Search(**(dict(content) | changed))


def _is_number(value: Level) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
