"""Design of a study: its declaration resolved, as design.json, the study's history and every record of its runs hold it.

`parse` and `read` take every schema so far; `to_json` writes the newest. A new kind of study registers its own class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from core.records.metrics import METRICS
from core.runtime import json_files
from core.runtime.json_files import CONVERSION_ERRORS, DamagedFileError, Number, Whole, in_words

FILE_NAME = "design.json"
SCHEMA = 1  # designs of before have none
ABLATION = "ablation"  # the kind that files leave out

Share = Annotated[float, Meta(gt=0, lt=1)]
Cell = tuple[str, Whole]  # an arm's name and a seed


@dataclass(frozen=True)
class DesignFactor:
    """One thing that is varied. key: of a config; label: for people; levels: the values that it takes."""

    key: str
    label: str
    levels: tuple[Any, ...]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model: all, and those that one token uses."""

    total: Whole
    active: Whole


@dataclass(frozen=True)
class Likelihood:
    """Kind of number that a run's validation NELBO is.

    kind: "exact" for an autoregressive model; "tuned" after preferences; else "bound", also for blocks, weights, shifts and
    routers that see a whole sequence: validation has the plain bound, and a masked token is predicted from visible ones
    alone. of: whole sequences, or responses given their prompts. tokenizer: what a token is.
    """

    kind: Literal["exact", "bound", "tuned"]
    of: Literal["sequences", "responses"]
    tokenizer: str


@dataclass(frozen=True)
class LadderPoint:
    """A model on a number of tokens. flops: of the whole run; budget, tokens_per_parameter: what it was solved for, or None.

    sparsity: experts / chosen experts; granularity: as in analysis.scaling.law.
    """

    family: str
    tokens: Number
    flops: Number
    epochs: Number
    budget: Number | None
    tokens_per_parameter: Number | None
    sparsity: Number
    granularity: Number


@dataclass(frozen=True)
class LadderTarget:
    """A model that a ladder's law is extrapolated to. parameters: active ones; sparsity: experts / chosen experts."""

    parameters: Number
    tokens: Number
    sparsity: Number
    granularity: Number


@dataclass(frozen=True)
class LadderDesign:
    """The targets of a scaling ladder, by name."""

    targets: Mapping[str, LadderTarget]


@dataclass(frozen=True)
class DecodingConfig:
    """One way of decoding. settings: fields of core.diffusion.sampling.Sampling, those alone that were given."""

    name: str
    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class DecodersDesign:
    """Decoding of each trained model: responses to the same held-out `examples` of a task, `length` tokens each.

    decode_seeds: how often each is answered where that is by chance. control: a decoder's name, the first; causal: names of
    the arms that are decoded token after token alone. margin: of exact match; None: equivalence isn't claimed.
    """

    task: str
    examples: Whole
    decode_seeds: Whole
    length: Whole
    margin: Number | None
    control: str
    ways: Annotated[tuple[DecodingConfig, ...], Meta(min_length=1)]
    causal: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogsDesign:
    """Where runs that another program trained were logged. notes: what the logs don't tell, or lack, in sentences. axis: what
    their curves are drawn against."""

    sources: tuple[str, ...]
    notes: tuple[str, ...]
    axis: str = "step"


@dataclass(frozen=True)
class AdaptiveDesign:
    """A rule that buys seeds until comparisons are decided (analysis.verdicts.until_decided.Rule), and what it bought.

    bought: how many of the seeds, the first ones, each arm has so far. retried: after how many seeds one had looked when
    failed runs were trained again, and which.
    """

    fixed: Whole
    first: Whole
    block: Whole
    share: Number
    futile: Number
    bought: Mapping[str, Whole]
    retried: tuple[tuple[Whole, tuple[Cell, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DesignArm:
    """One setting of all factors. settings: factor levels by config key; hash: of its config without the seed.

    notes: what makes it hard to compare with the control. flops: of a recipe's whole training. first: config of a recipe's
    first stage. likelihood and data_fingerprint are None in older designs.
    """

    name: str
    label: str
    settings: Mapping[str, Any]
    hash: str
    parameters: ParameterCounts
    flops_per_token: Number
    notes: tuple[str, ...] = field(metadata={"before": ()})
    likelihood: Likelihood | None = None
    point: LadderPoint | None = None
    data_fingerprint: str | None = None
    flops: Number | None = None
    first: Mapping[str, Any] | None = None
    first_data_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudyDesign:
    """Fields of the design of every kind of study. kind: a name of KINDS, or of another kind whose designs are Designs.

    devices: processes that train one run together; overrides: settings of the command line; declared_in: a study's
    name or a file. data_fingerprint: of the arms' data, separated by spaces. extra: what this version doesn't know.
    """

    kind: str
    ablation: str
    size: str
    question: str
    control: str
    seeds: Annotated[tuple[Whole, ...], Meta(min_length=1)]
    secondary: tuple[str, ...]
    data_fingerprint: str
    overrides: tuple[str, ...] = field(metadata={"before": ()})
    devices: Whole = field(metadata={"before": 1})
    command: str = ""
    declared_in: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """The metric that decides."""
        raise NotImplementedError

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the data of all arms."""
        return tuple(self.data_fingerprint.split(" "))

    def to_json(self) -> dict[str, Any]:
        """The design as plain values, for `parse`; what is left at its default is left out."""
        return dict(self._plain)

    @cached_property
    def _plain(self) -> Mapping[str, Any]:
        """Made once: every record of a run holds it."""
        kind = {} if self.kind == ABLATION else {"kind": self.kind}
        content: dict[str, Any] = plain(self)
        extra = content.pop("extra", {})
        return kind | {"schema": SCHEMA} | content | extra

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """As `parse`. Raises DamagedFileError for a design of another class too."""
        design = parse(content)
        if not isinstance(design, cls):
            raise DamagedFileError(f"of a study of another kind, '{design.kind[:60]}'")
        return design

    @classmethod
    def read(cls, path: Path) -> Self:
        """The design in a file. Raises FileNotFoundError, and as `from_json` does."""
        return cls.from_json(json_files.read(path))


@dataclass(frozen=True, kw_only=True)
class Design(StudyDesign):
    """An ablation's: arms, each trained under every seed.

    base: of core.config.presets. arms: the control first. contrasts: pairs of arms that are compared with each other.
    confirms: the arm that fresh seeds are to confirm; search: identity of the search whose finalists are confirmed. logs: of
    runs that were logged by another program.
    """

    kind: str = ABLATION
    metric: str
    margin: Number | None
    alpha: Share
    power: Share
    factors: tuple[DesignFactor, ...]
    arms: Annotated[tuple[DesignArm, ...], Meta(min_length=1)]
    base: str = field(metadata={"before": ""})
    contrasts: tuple[tuple[str, str], ...] = field(metadata={"before": ()})
    decoders: DecodersDesign | None = None
    ladder: LadderDesign | None = None
    adaptive: AdaptiveDesign | None = None
    confirms: str | None = None
    search: str | None = None
    logs: LogsDesign | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if unknown := {self.metric, *self.secondary} - METRICS.keys():
            raise ValueError(f"unknown metric '{min(unknown)[:60]}'")
        if self.control not in names:
            raise ValueError(f"the control '{self.control[:60]}' is none of the arms")
        if len(set(names)) < len(names):
            raise ValueError("two arms have one name")
        if any(name not in names for pair in self.contrasts for name in pair):
            raise ValueError("contrasts name an arm that there isn't")

    @property
    def primary(self) -> str:
        return self.metric

    @cached_property
    def by_name(self) -> Mapping[str, DesignArm]:
        """The arms by their names."""
        return {arm.name: arm for arm in self.arms}

    @property
    def cells(self) -> Iterator[tuple[DesignArm, int]]:
        """Every arm under every seed that it is to be trained on so far, block by block."""
        for place, seed in enumerate(self.seeds):
            for arm in self.arms:
                if self.adaptive is None or place < self.adaptive.bought.get(arm.name, 0):
                    yield arm, seed


@dataclass(frozen=True, kw_only=True)
class SearchDesign(StudyDesign):
    """A search's. identity: six hex digits that change with everything that makes trials comparable.

    metrics, goals ("min" or "max"): the objectives, the first of which decides. declared: the search, for
    sweeps.search.spec.from_json. rungs: steps at which configurations are compared. trials, tokens: the budget of each level
    of `compare`; None: unlimited.
    """

    kind: str = "search"
    identity: str
    metrics: Annotated[tuple[str, ...], Meta(min_length=1)]
    goals: Annotated[tuple[Literal["min", "max"], ...], Meta(min_length=1)]
    control_settings: Mapping[str, Any]
    space: Mapping[str, str]
    compare: str | None
    rungs: Annotated[tuple[Whole, ...], Meta(min_length=1)]
    tokens_per_run: Number
    tokens_per_step: Number
    sampler: str
    pruner: str
    trials: Whole | None
    tokens: Number | None
    declared: Mapping[str, Any]

    def __post_init__(self) -> None:
        if unknown := {*self.metrics, *self.secondary} - METRICS.keys():
            raise ValueError(f"unknown metric '{min(unknown)[:60]}'")
        if len(self.metrics) != len(self.goals):
            raise ValueError("goals are not as many as metrics")

    @property
    def primary(self) -> str:
        return self.metrics[0]


KINDS: dict[str, type[StudyDesign]] = {ABLATION: Design, "search": SearchDesign}


def parse(content: Any) -> StudyDesign:
    """The design of plain values, of any schema so far. Raises DamagedFileError with the field that is wrong."""
    if not isinstance(content, dict):
        raise DamagedFileError("no mapping")
    schema = content.get("schema", 0)
    if not json_files.is_whole(schema):
        raise DamagedFileError("schema: expected whole number")
    if schema > SCHEMA:
        raise DamagedFileError(f"of schema {str(schema)[:20]}, and this version reads up to {SCHEMA}: update it")
    cls = KINDS.get(str(content.get("kind", ABLATION)), Design)
    if schema == 0:
        content = {**_before(cls), **content}
        if isinstance(content.get("arms"), list | tuple):
            arms = ({**_before(DesignArm), **arm} if isinstance(arm, dict) else arm for arm in content["arms"])
            content["arms"] = list(arms)
    known = cls.__dataclass_fields__.keys() | {"schema"}
    try:
        return msgspec.convert(
            {**content, "extra": {name: value for name, value in content.items() if name not in known}}, cls
        )
    except CONVERSION_ERRORS as error:
        raise DamagedFileError(in_words(error)) from None


def parse_or_none(content: Any) -> StudyDesign | None:
    """The design of plain values that a record or a history holds; None for a damaged one, and where there is none."""
    try:
        return parse(content)
    except DamagedFileError:
        return None


def first_stage_data(study: Mapping[str, Any]) -> str | None:
    """The fingerprint that the first stage of a record's arm was planned on; None without one, and where it wasn't noted.

    study: the record's, whose design is read as far as this needs: it may be damaged, or of a later schema.
    """
    design = study.get("design")
    arms = design.get("arms") if isinstance(design, dict) else None
    entries = (arm for arm in (arms if isinstance(arms, list) else ()) if isinstance(arm, dict))
    noted = next((arm.get("first_data_fingerprint") for arm in entries if arm.get("name") == study.get("arm")), None)
    return noted if isinstance(noted, str) else None


def _before(cls: type[Any]) -> dict[str, Any]:
    """Fields that designs without a schema needn't have, with what they were then."""
    return {entry.name: entry.metadata["before"] for entry in fields(cls) if "before" in entry.metadata}


def plain(value: Any) -> Any:
    """A part of a design as JSON gives it back; dataclasses without the fields that are left at their default."""
    if is_dataclass(value):
        names = (entry.name for entry in fields(value) if getattr(value, entry.name) != _default(entry))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
