"""A study's design.json: which design was last run there. Read as a whole, or refused with what is wrong."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.records.metrics import METRICS
from core.runtime import json_files as jsonfiles
from core.runtime.json_files import DamagedFileError, is_number, is_whole

FILE_NAME = "design.json"


def read(path: Path) -> dict[str, Any]:
    """The design of an ablation or a search. Raises FileNotFoundError, and DamagedFileError with what is wrong."""
    design = jsonfiles.read(path)
    if (said := trouble(design)) is not None:
        raise DamagedFileError(said)
    found: dict[str, Any] = design
    return found


def first_stage_data(design: Mapping[str, Any], arm: str | None) -> str | None:
    """The fingerprint that an arm's first stage was planned on; None without one, and for versions that didn't say.

    design: unchecked, as a record holds it.
    """
    entries = design.get("arms")
    own = (entry for entry in (entries if isinstance(entries, list | tuple) else ()) if isinstance(entry, dict))
    found = next((entry.get("first_data_fingerprint") for entry in own if entry.get("name") == arm), None)
    return found if isinstance(found, str) else None


def trouble(design: Any) -> str | None:
    """What is wrong with a design; None where nothing is. analysis.study says what one holds."""
    if not isinstance(design, dict):
        return "no mapping"
    checks = _SEARCH if design.get("kind") == "search" else _ABLATION
    if missing := sorted(name for name in checks if name not in design):
        return f"no {', '.join(missing)}"
    for name, check in (checks | _OPTIONAL).items():
        if name in design and not check(design[name]):
            return f"{name} is not what it should be"
    return next(_within(design), None)


def _within(design: Mapping[str, Any]) -> Iterator[str]:
    """What of one field contradicts another."""
    if design.get("kind") == "search":
        return
    names = [arm["name"] for arm in design["arms"]]
    if design["control"] not in names:
        yield f"the control '{design['control'][:60]}' is none of the arms"
    if len(set(names)) < len(names):
        yield "two arms have one name"
    if any(name not in names for pair in design.get("contrasts") or () for name in pair):
        yield "contrasts name an arm that there isn't"


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(check: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) >= least and all(map(check, value))


def _number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def _share(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _metric(value: Any) -> bool:
    return isinstance(value, str) and value in METRICS


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _arm(arm: Any) -> bool:
    return (
        isinstance(arm, dict)
        and all(isinstance(arm.get(name), str) for name in ("name", "label", "hash"))
        and isinstance(arm.get("settings"), dict)
        and isinstance(arm.get("parameters"), dict)
        and all(is_whole(arm["parameters"].get(name)) for name in ("total", "active"))
        and is_number(arm.get("flops_per_token"))
        and _list_of(_text)(arm.get("notes", []))
        and isinstance(arm.get("point", {}), dict)
    )


def _factor(factor: Any) -> bool:
    known = isinstance(factor, dict) and _text(factor.get("key")) and _text(factor.get("label"))
    return known and isinstance(factor.get("levels"), list)


def _pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_text, pair))


def _adaptive(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("bought"), dict)
        and all(map(is_whole, value["bought"].values()))
        and _list_of(_retry)(value.get("retried", []))
    )


def _retry(retry: Any) -> bool:
    """After how many seeds one had looked, and the cells that were trained again: [seeds, [[arm, seed], ...]]."""
    return isinstance(retry, list | tuple) and len(retry) == 2 and is_whole(retry[0]) and are_cells(retry[1])


def are_cells(value: Any) -> bool:
    """Whether a value is a list of [arm, seed]."""
    return _list_of(_cell)(value)


def _cell(cell: Any) -> bool:
    return isinstance(cell, list | tuple) and len(cell) == 2 and _text(cell[0]) and is_whole(cell[1])


_SHARED: dict[str, Callable[[Any], bool]] = {
    "ablation": _text, "size": _text, "question": _text, "seeds": _list_of(is_whole, 1), "data_fingerprint": _text,
}  # fmt: skip
_ABLATION = _SHARED | {
    "metric": _metric, "secondary": _list_of(_metric), "margin": _number_or_null, "alpha": _share, "power": _share,
    "control": _text, "arms": _list_of(_arm, 1), "factors": _list_of(_factor),
}  # fmt: skip
_SEARCH = _SHARED | {"identity": _text, "metrics": _list_of(_metric, 1), "goals": _list_of(_text, 1)}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "declared_in": _text, "contrasts": _list_of(_pair), "overrides": _list_of(_text), "command": _text, "adaptive": _adaptive,
    "decoders": _mapping, "ladder": _mapping, "devices": is_whole,
}  # fmt: skip
