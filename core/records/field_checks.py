"""Type checks of a record's fields, so that one bad record among a thousand raises nothing.

Records are checked and not converted: written again, one has the very bytes, and so the digest, that it had.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import msgspec

from core.runtime.json_files import CONVERSION_ERRORS, Number, Whole, are_numbers, in_words

Numbers = dict[str, Number | None]
Columns = dict[str, list[Number | None]]
DIMENSIONS = {"load_by_timestep": 4, "saturation": 2, "coactivation": 3}  # of tables of routing


class _Config(TypedDict, total=False):
    model: dict[str, Any]
    objective: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]


class _Load(TypedDict, total=False):
    step: list[Number]


class _Best(TypedDict, total=False):
    weights_sha256: str | None


class _Alarm(TypedDict):
    step: Any
    kind: str
    detail: Any


class _Provenance(TypedDict, total=False):
    packages: dict[str, Any] | None
    weights_sha256: str | None
    git_commit: str | None
    git_diff_sha256: str | None
    source_sha256: str | None


class _Study(TypedDict, total=False):
    arm: str | None
    design: dict[str, Any] | None


class _Record(TypedDict, total=False):
    """The fields of a RunRecord; null stands for numbers that JSON has no word for."""

    status: Literal["complete", "failed", "paused"]
    run_hash: str
    arm_hash: str
    seed: Whole
    config: _Config
    reason: str | None
    metrics: Numbers
    curve: Columns
    validation: Columns
    expert_load: _Load
    routing: dict[str, list[Any]]
    best: _Best
    alarms: list[_Alarm]
    notes: list[str]
    wall_time_s: Number | None
    tokens_per_second: Number | None
    flops: Number | None
    before: Numbers
    parameters: Numbers
    data_fingerprint: str
    provenance: _Provenance
    started_at: str
    finished_at: str
    study: _Study
    schema: Whole


def trouble(content: Mapping[str, Any]) -> str | None:
    """Describe the first field of a record that has a wrong type; None if all are right."""
    try:
        msgspec.convert(content, _Record)
    except CONVERSION_ERRORS as error:
        return _named(in_words(error), content)
    load = content.get("expert_load", {}).get("load", [])
    if load != [] and len(_shape(load)) != 3:
        return "expert_load: no table of numbers by step, layer and expert"
    for name, table in content.get("routing", {}).items():
        shape = _shape(table)
        if table and len(shape) != DIMENSIONS.get(name, len(shape) or 1):
            return f"routing: '{name[:60]}' is no table of numbers"
    return None


def _named(said: str, content: Mapping[str, Any]) -> str:
    """A message with the key in a field of numbers that is meant, which msgspec leaves out."""
    field, found, rest = said.partition("[...]")
    for key, value in content.get(field, {}).items() if found else ():
        try:
            msgspec.convert({key: value}, Numbers if field in ("metrics", "before", "parameters") else Columns)
        except CONVERSION_ERRORS:
            return f"{field} '{str(key)[:60]}'{rest}"
    return said


def _shape(table: Any) -> tuple[int, ...]:
    """The shape of nested lists of numbers (or nulls), () for what has none."""
    if not isinstance(table, list) or not table:
        return ()
    if not isinstance(table[0], list):
        return (len(table),) if are_numbers(one for one in table if one is not None) else ()
    shapes = {_shape(one) for one in table}
    inner = shapes.pop()
    return (len(table), *inner) if not shapes and inner else ()
