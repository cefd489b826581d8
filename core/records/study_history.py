"""history.jsonl of a study: each design that it had and each time that its results were shown; and changes between designs.

Lines are added (sweeps.runs.history) and never changed. Studies of versions that kept none have no such file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from core.config.loading import flatten, text
from core.records.designs import Design, DesignArm, StudyDesign, parse
from core.runtime import json_files
from core.runtime.json_files import CONVERSION_ERRORS, Whole

FILE_NAME = "history.jsonl"
DESIGN, LOOK = "design", "look"  # what a line's "event" says
PLAIN = ("metric", "secondary", "margin", "alpha", "power", "control")
WHOLE = {"contrasts": "planned contrasts", "decoders": "decoders", "ladder": "the ladder's targets"}
OF_RUNNING = ("kind", "command", "declared", "declared_in", "extra")  # fields that say nothing of what is searched
MOST = 4  # names that are listed

Configs = Mapping[str, Mapping[str, Any]]  # by arm


class HistoryError(ValueError):
    """A history that can't be read as a whole; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """at: when, in UTC, empty where it isn't known; git_commit: of the working tree; recorded: runs that were finished."""

    at: str
    recorded: Whole
    git_commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class DesignEvent(Event):
    """A design was about to be run."""

    design: StudyDesign

    def to_json(self) -> dict[str, Any]:
        content = {"event": DESIGN, "at": self.at, "git_commit": self.git_commit, "recorded": self.recorded}
        return content | {"design": self.design.to_json()}


@dataclass(frozen=True, kw_only=True)
class Look(Event):
    """Results were shown. by: the command; seeds: of the design; winner: of a confirmation, or None."""

    by: str
    seeds: Whole
    winner: str | None = None

    def to_json(self) -> dict[str, Any]:
        content = {"event": LOOK} | asdict(self)
        return content if self.winner is not None else {k: v for k, v in content.items() if k != "winner"}


def read(study: Path) -> list[Event]:
    """The events of a study's folder, oldest first; none where there is no such file. Raises HistoryError."""
    path = study / FILE_NAME
    try:
        lines = json_files.read_lines(path, dict, "event")
        return [_event(line) for line in lines]
    except json_files.DamagedFileError as error:
        raise HistoryError(f"{path.name} {error}") from None
    except CONVERSION_ERRORS:
        raise HistoryError(f"{path.name} is damaged: it holds something that is no event") from None


def designs_of(events: Iterable[Event]) -> list[DesignEvent]:
    """The events at which a design was noted."""
    return [event for event in events if isinstance(event, DesignEvent)]


def _event(line: dict[str, Any]) -> Event:
    if line.get("event") != DESIGN:
        return msgspec.convert(line if line.get("event") == LOOK else None, Look)
    try:
        event = msgspec.convert(line, Event)
        return DesignEvent(**asdict(event), design=parse(line.get("design")))
    except json_files.DamagedFileError as error:
        raise json_files.DamagedFileError(f"is damaged: a design, {error}") from None


def changes(was: StudyDesign, now: StudyDesign, configs: tuple[Configs, Configs] = ({}, {})) -> list[str]:
    """List the changes between two designs, a few words each; what only one of the two says is not compared.

    configs: of the arms in both designs, as far as they are known, to say which settings differ. Of searches only the names
    of what differs are said.
    """
    if not (isinstance(was, Design) and isinstance(now, Design)):
        names = [entry.name for entry in fields(now) if hasattr(was, entry.name) and entry.name not in OF_RUNNING]
        return [name for name in names if getattr(was, name) != getattr(now, name)]
    said = ["the question"] if was.question != now.question else []
    for name in PLAIN:
        before, after = getattr(was, name), getattr(now, name)
        said += [f"{name} {_shown(before)} → {_shown(after)}"] if before != after else []
    said += [f"seeds {spans(was.seeds)} → {spans(now.seeds)}"] if was.seeds != now.seeds else []
    said += _arms(was.arms, now.arms, configs)
    labels = {factor.key: factor.label for factor in was.factors}
    said += [
        f"label of {factor.key} {labels[factor.key]} → {factor.label}"
        for factor in now.factors
        if labels.get(factor.key, factor.label) != factor.label
    ]
    said += [
        words
        for name, words in WHOLE.items()
        if None not in (pair := (getattr(was, name), getattr(now, name))) and pair[0] != pair[1]
    ]
    if "" not in (pair := (was.data_fingerprint, now.data_fingerprint)) and set(pair[0].split()) != set(
        pair[1].split()
    ):
        said.append("the data, or a file that the settings name")
    return said


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers, those in a row by their first and last: 0–4, 7."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]}–{row[-1]}" if len(row) > 1 else str(row[0]) for row in rows)


def listed(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:MOST]) + (f" and {len(found) - MOST} more" if len(found) > MOST else "")


def _arms(was: Sequence[DesignArm], now: Sequence[DesignArm], configs: tuple[Configs, Configs]) -> list[str]:
    before, after = ({arm.name: arm.hash for arm in arms} for arms in (was, now))
    names = {"arms added": after.keys() - before.keys(), "arms removed": before.keys() - after.keys()}
    said = [
        f"{words}: {listed(name for name in (*before, *after) if name in found)}"
        for words, found in names.items()
        if found
    ]
    changed = [name for name in before if after.get(name, before[name]) != before[name]]
    if not changed:
        return said
    settings = dict.fromkeys(each for name in changed for each in _settings(configs[0].get(name), configs[1].get(name)))
    return [*said, listed(settings) or f"settings of {'all' if len(changed) == len(before) else len(changed)} arms"]


def _settings(was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    if was is None or now is None:
        return []
    before, after = dict(flatten(was)), dict(flatten(now))
    keys = [key for key in (*after, *(before.keys() - after.keys())) if key != "seed"]
    return [
        f"{key} {_shown(before.get(key))} → {_shown(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else text(value)
