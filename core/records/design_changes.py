"""How two designs of one study differ, in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.config.loading import flatten, text

PLAIN = ("metric", "secondary", "margin", "alpha", "power", "control")
WHOLE = {"contrasts": "planned contrasts", "decoders": "decoders", "ladder": "the ladder's targets"}
MOST = 4  # names that are listed

Configs = Mapping[str, Mapping[str, Any]]  # by arm


def changes(was: Mapping[str, Any], now: Mapping[str, Any], configs: tuple[Configs, Configs] = ({}, {})) -> list[str]:
    """What of a design was changed, a few words each; what only one of the two says is not compared.

    configs: of the arms in both designs, as far as they are known, to say which settings differ. Of searches only the names
    of what differs are said.
    """
    was, now = json.loads(json.dumps(was)), json.loads(json.dumps(now))
    both = [name for name in now if name in was]
    if "search" in (was.get("kind"), now.get("kind")):
        skipped = ("command", "declared", "declared_in")
        return [name for name in both if was[name] != now[name] and name not in skipped]
    said = ["the question"] if was.get("question", "") != now.get("question", "") else []
    said += [
        f"{name} {_shown(was[name])} → {_shown(now[name])}" for name in PLAIN if name in both and was[name] != now[name]
    ]
    if "seeds" in both and was["seeds"] != now["seeds"]:
        said.append(f"seeds {spans(was['seeds'])} → {spans(now['seeds'])}")
    said += _arms(was["arms"], now["arms"], configs) if "arms" in both else []
    before, after = ({one["key"]: one["label"] for one in design.get("factors", ())} for design in (was, now))
    said += [
        f"label of {key} {before[key]} → {label}" for key, label in after.items() if before.get(key, label) != label
    ]
    said += [words for name, words in WHOLE.items() if name in both and was[name] != now[name]]
    if "data_fingerprint" in both and set(was["data_fingerprint"].split()) != set(now["data_fingerprint"].split()):
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


def _arms(was: list[dict[str, Any]], now: list[dict[str, Any]], configs: tuple[Configs, Configs]) -> list[str]:
    before, after = ({arm["name"]: arm["hash"] for arm in arms} for arms in (was, now))
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
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else text(value)
