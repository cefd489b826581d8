"""Type checks of a record's fields, so that one bad record among a thousand raises nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from core.runtime.json_files import are_numbers, is_number, is_whole


def trouble(content: Mapping[str, Any]) -> str | None:
    """Describe the first field of a record that has a wrong type; None if all are right."""
    for name, value in content.items():
        said = _FIELDS[name](value)
        if said is not None:
            return f"{name} {said}"
    return None


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "is no text"


def _text_or_null(value: Any) -> str | None:
    return None if value is None else _text(value)


def _whole(value: Any) -> str | None:
    return None if is_whole(value) else "is no whole number"


def _number(value: Any) -> str | None:
    return None if value is None or is_number(value) else "is no number"


def _status(value: Any) -> str | None:
    return None if value in ("complete", "failed", "paused") else f"'{str(value)[:40]}' is none that there is"


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, dict) else "is no mapping"


def _numbers(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    return next((f"'{key[:60]}' is no number" for key, one in value.items() if _number(one) is not None), None)


def _columns(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    for name, column in value.items():
        if not isinstance(column, list) or not are_numbers(one for one in column if one is not None):
            return f"'{name[:60]}' is no column of numbers"
    return None


def _load(value: Any) -> str | None:
    if (said := _mapping(value)) is not None or not value:
        return said
    steps, load = value.get("step", []), value.get("load", [])
    if not isinstance(steps, list) or not are_numbers(steps):
        return "has no steps"
    return None if len(_shape(load)) == 3 or load == [] else "is no table of numbers by step, layer and expert"


def _routing(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    wanted = {"load_by_timestep": 4, "saturation": 2, "coactivation": 3}
    for name, one in value.items():
        shape = _shape(one)
        if not isinstance(one, list) or (one and not shape) or (one and len(shape) != wanted.get(name, len(shape))):
            return f"'{name[:60]}' is no table of numbers"
    return None


def _shape(table: Any) -> tuple[int, ...]:
    """The shape of nested lists of numbers (or nulls), () for what has none."""
    if not isinstance(table, list) or not table:
        return ()
    if not isinstance(table[0], list):
        return (len(table),) if are_numbers(one for one in table if one is not None) else ()
    shapes = {_shape(one) for one in table}
    inner = shapes.pop()
    return (len(table), *inner) if not shapes and inner else ()


def _notes(value: Any) -> str | None:
    return None if isinstance(value, list) and all(isinstance(one, str) for one in value) else "is no list of sentences"


def _alarms(value: Any) -> str | None:
    if not isinstance(value, list):
        return "is no list"
    whole = (
        isinstance(one, dict) and isinstance(one.get("kind"), str) and {"step", "detail"} <= one.keys() for one in value
    )
    return None if all(whole) else "holds something that is no alarm"


def _provenance(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    if not isinstance(value.get("packages") or {}, dict):
        return "'packages' is no mapping"
    hashed = ("weights_sha256", "git_commit", "git_diff_sha256", "source_sha256")
    return next((f"'{name}' is no text" for name in hashed if _text_or_null(value.get(name)) is not None), None)


def _best(value: Any) -> str | None:
    return _mapping(value) or (
        None if _text_or_null(value.get("weights_sha256")) is None else "'weights_sha256' is no text"
    )


def _study(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    if _text_or_null(value.get("arm")) is not None:
        return "'arm' is no text"
    return None if isinstance(value.get("design") or {}, dict) else "'design' is no mapping"


def _config(value: Any) -> str | None:
    if (said := _mapping(value)) is not None:
        return said
    sections = ("model", "objective", "data", "optimizer", "trainer")
    return next((f"'{name}' is no mapping" for name in sections if not isinstance(value.get(name, {}), dict)), None)


_FIELDS: dict[str, Callable[[Any], str | None]] = {
    "status": _status, "run_hash": _text, "arm_hash": _text, "seed": _whole, "config": _config, "reason": _text_or_null,
    "metrics": _numbers, "curve": _columns, "validation": _columns, "expert_load": _load, "routing": _routing,
    "best": _best, "alarms": _alarms, "notes": _notes, "wall_time_s": _number, "tokens_per_second": _number, "flops": _number,
    "before": _numbers,
    "parameters": _numbers, "data_fingerprint": _text, "provenance": _provenance, "started_at": _text,
    "finished_at": _text, "study": _study, "schema": _whole,
}  # fmt: skip
