"""Answer: what every judge returns, and Judgement, the answer of a study whose runs are records."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from html import escape
from typing import Any, Protocol

import numpy as np

from analysis.figure import Figure
from analysis.study import Study
from analysis.table import Table, tables_on
from analysis.verdicts.comparisons import MetricTable
from analysis.verdicts.until_decided import SequentialRun
from core.records.designs import Design
from core.registry import Registry

Analysis = Callable[[Study, "Context"], "Part | None"]

# Keys of `ablate report --json` that every answer has, whatever was analysed.
KEYS: Mapping[str, Any] = {
    "question": "", "headline": "", "tables": [], "winner": None, "winner_reason": "", "noise_sd": None, "counts": {},
    "set_aside": {}, "unreadable": [], "design": {}, "exploratory": "", "contrasts": [], "speeds": [], "main_effects": None,
    "interactions": None, "factorial_note": "", "course": None, "decoding": None, "ladder": None, "notes": [], "declared": "",
}  # fmt: skip


class Answer(Protocol):
    """The answer of a study, whatever its kind: renderers loop over its tables and figures."""

    @property
    def headline(self) -> str:
        """The answer in a few sentences."""

    @property
    def winner(self) -> str | None:
        """The arm that may be exported; None where there is none."""

    @property
    def tables(self) -> Sequence[Table]:
        """All tables, in the order of a terminal."""

    @property
    def figures(self) -> Sequence[Figure]:
        """All figures, as data."""


@dataclass(frozen=True)
class Context:
    """Inputs of a part of an answer beside the study.

    primary: arms beside the control in the study's metric. course: of a sweep that is bought until it is decided. brief: only
    sentences for the headline are asked for.
    """

    primary: MetricTable
    course: SequentialRun | None
    brief: bool


@dataclass(frozen=True)
class Part:
    """Addition of one analysis to the answer of a study of arms.

    found: results by their key in `ablate report --json`. sentence: for the headline. sources: what a report cites for it.
    """

    found: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    sentence: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartKind:
    """An analysis that every study of arms is given. order: its place among the others.

    implementation: a function `(study, context) -> Part | None`, None where it has nothing to say of the study.
    """

    name: str
    order: int
    implementation: Analysis


PARTS: Registry[PartKind] = Registry("parts of an answer", folder="analysis.verdicts.parts")


def part(name: str, *, order: int = 50) -> Callable[[Analysis], Analysis]:
    """Register a function as a part of every answer."""

    def register(implementation: Analysis) -> Analysis:
        PARTS.add(PartKind(name, order, implementation))
        return implementation

    return register


@dataclass(frozen=True)
class Judgement:
    """The answer of a study from its records.

    winner_reason: why that arm may be exported, or why none may. found: results by their key in `ablate report --json`.
    draw: makes the figures' data, once they are asked for. pages: names of the report's pages that it always has; further
    ones follow from the places of tables and figures. extent: the size of the design in words. methods: how it was
    analysed, in a sentence for a paper; sources: the statistics that it rests on. notes: what the numbers don't show of how
    they came about. declared: when and at which commit the study was declared, and what was changed since. pairing: what
    runs of one seed share.
    """

    study: Study = field(repr=False)
    headline: str
    winner: str | None
    winner_reason: str
    tables: tuple[Table, ...]
    found: Mapping[str, Any]
    draw: Callable[[], Sequence[Figure]] = field(repr=False)
    pages: tuple[str, ...]
    extent: str
    methods: str
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    declared: str
    pairing: str = (
        "Within one, all arms meet the same data order, masks, timesteps and validation masks, and the same initial weights "
        "wherever shapes agree; differences are taken within seeds (r is the correlation of the pairs)."
    )

    @cached_property
    def figures(self) -> Sequence[Figure]:
        """All figures, as data."""
        return self.draw()

    @property
    def question(self) -> str:
        """The question that the study was declared to answer."""
        return self.study.design.question

    @property
    def design(self) -> Design:
        """The design that the records were judged by."""
        return self.study.design

    @property
    def counts(self) -> Mapping[str, int]:
        """Runs by state."""
        return {"complete": self.study.complete, "failed": self.study.failed, "missing": self.study.missing}

    @property
    def comparisons(self) -> tuple[MetricTable, ...]:
        """Every arm beside the control, by metric, the primary one first; empty where arms aren't compared."""
        return tuple(self.found.get("tables", ()))

    def _repr_html_(self) -> str:
        """The answer in a notebook: question, headline and tables; every text is escaped."""
        notes = "".join(f"<p><small>Note: {escape(note)}</small></p>" for note in self.notes)
        tables = "".join(table._repr_html_() for table in tables_on(self.tables, "page") if table.columns)
        return f"<h3>{escape(self.question)}</h3><p><b>{escape(self.headline)}</b></p>{tables}{notes}"

    def to_dict(self) -> dict[str, Any]:
        """All results, JSON-ready: null for what isn't a finite number."""
        own = {name: getattr(self, name) for name in KEYS if hasattr(self, name) and name not in self.found}
        facts = {"set_aside": self.study.set_aside, "unreadable": self.study.unreadable}
        return {**plain({**KEYS, **own, **facts, **self.found, "tables": self.comparisons})}


def plain(value: Any) -> Any:
    """A value JSON-ready: null for what isn't a finite number."""
    for name in ("to_dict", "to_json"):
        if hasattr(value, name):
            return plain(getattr(value, name)())
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {" − ".join(key) if isinstance(key, tuple) else str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
