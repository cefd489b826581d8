"""JSON that somebody else may have written, or half written: read, or refused in one line."""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

LARGEST = 2**63  # of whole numbers: arrays hold none beyond
_HUGE = re.compile("[0-9]{20}")  # a whole number of more digits than that, perhaps; found quickly

CONVERSION_ERRORS = (msgspec.ValidationError, UnicodeEncodeError)  # the latter: names with half a surrogate pair
WORDS = {"str": "text", "int": "whole number", "float": "number", "object": "mapping", "array": "list"}

Whole = Annotated[int, Meta(gt=-LARGEST, le=LARGEST - 1)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]  # finite


class DamagedFileError(ValueError):
    """The content of a file can't be read; the message says why in a line, without the file's name."""


def read(path: Path, *, finite: bool = True) -> Any:
    """The content of a JSON file. Raises FileNotFoundError, and DamagedFileError for what can't be opened or isn't JSON."""
    try:
        content = path.read_bytes()
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(error.strerror or str(error)) from None
    return parse(content, finite=finite)


def parse(content: bytes | str, *, finite: bool = True) -> Any:
    """JSON of plain values. Raises DamagedFileError, also for huge numbers, deep nesting, if `finite`, NaN and infinity."""
    try:
        text = content if isinstance(content, str) else content.decode()
        found = json.loads(text, parse_constant=_refuse if finite else None)
    except RecursionError:
        raise DamagedFileError("not JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"no text: {error}") from None
    except ValueError as error:
        raise DamagedFileError(f"not JSON: {error}") from None
    if _HUGE.search(text) is not None:  # rarely: then it is read again, to see whether it is a number or within a text
        json.loads(text, parse_int=_small)
    return found


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry to a file of JSON lines, made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_lines(path: Path, kind: Any, noun: str) -> list[dict[str, Any]]:
    """The entries of a file of JSON lines, oldest first; none where there is no such file.

    kind: type of an entry, for `fits`; noun: what an entry is called. Raises DamagedFileError with what is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if os.path.lexists(path) else []
        entries = [parse(line) for line in lines]
    except OSError as error:
        raise DamagedFileError(f"can't be read: {error.strerror}") from None
    except ValueError as error:
        raise DamagedFileError(f"is damaged: {error}") from None
    if not all(fits(entry, kind) for entry in entries):
        raise DamagedFileError(f"is damaged: it holds something that is no {noun}")
    return entries


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object_pairs_hook of a user's JSON: raises ValueError for a key that is given twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'it has "{next(name for name in names if names.count(name) > 1)}" twice: keep one of them')
    return found


def _small(digits: str) -> int:
    if len(digits.lstrip("-")) > len(str(LARGEST)):
        raise DamagedFileError(f"a number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def fits(value: Any, kind: Any) -> bool:
    """True if plain values are of a type, as msgspec takes them: a dataclass or TypedDict, with other keys beside its own."""
    try:
        msgspec.convert(value, kind)
        return True
    except CONVERSION_ERRORS:
        return False


def in_words(error: Exception) -> str:
    """Msgspec's message with the field first: "alpha: expected number < 1.0"."""
    if isinstance(error, UnicodeEncodeError):
        return "a name that is no text"
    said, _, place = str(error).partition(" - at `$")
    said = re.sub(
        r"`(.+?)`", lambda quoted: " or ".join(WORDS.get(word, word) for word in quoted[1].split(" | ")), said
    )
    said = re.sub(r"'([^']{40})[^']+'", r"'\1…'", said)
    said = said.replace("Object missing required field", "it lacks")
    place = place.strip(".`")
    return f"{place}: {said[:1].lower()}{said[1:]}" if place else said


def are_numbers(values: Iterable[Any]) -> bool:
    """True if all are finite numbers."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def is_whole(value: Any) -> bool:
    """True if it is a whole number that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")
