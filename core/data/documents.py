"""Documents of text, in two parts: to train on and held out."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data import files
from core.data.splits import Origin, boundary, hold_back
from core.errors import UserError
from core.runtime.json_files import once

EMPTY = "without text"  # rows of nothing, which are passed over


@dataclass(frozen=True)
class Documents:
    """Texts by name, in two parts. digest: equal only for equal texts in equal order and parts."""

    train: dict[str, bytes]
    validation: dict[str, bytes]
    digest: str
    origin: Origin = field(default_factory=Origin)


def split(
    documents: Mapping[str, bytes],
    name: str,
    share: float | None = None,
    *,
    held: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
    passed: Mapping[str, int] | None = None,
) -> Documents:
    """Hold out the documents that are named, or about a tenth by size (share): whole ones, and the end of one too large.

    held: those to hold out, each with its file's name. sources: files that all are from; passed: how many were passed over,
    by kind. Raises UserError where no text is left to train on, or none is held out.
    """
    passed = Counter(passed or {}) + Counter({EMPTY: sum(not content.strip() for content in documents.values())})
    documents = {key: content for key, content in documents.items() if content.strip()}
    if not documents:
        counts = ", ".join(f"{kind} {n}" for kind, n in sorted(passed.items()))
        raise UserError(
            f"data.corpus={name} has no text: 0 documents with anything in them{counts and f' (passed over: {counts})'}"
        )
    train, validation = _parted(documents, share, held or ())
    if not train or not validation:
        size = [sum(map(len, part.values())) for part in (train, validation)]
        raise UserError(
            f"data.corpus={name} has {size[0]} bytes to train on and {size[1]} held out: use more text, or fill the files"
        )
    digest = hashlib.sha256()
    for part in (train, validation):
        for key, content in part.items():
            digest.update(os.fsencode(f"{key}\0{len(content)}\0") + content)
        digest.update(b"\0\0")
    origin = Origin(
        files=sources or list(documents),
        held=list(dict.fromkeys(held.values())) if held else list(validation),
        passed=passed,
        named=bool(held),
    )
    return Documents(train, validation, digest.hexdigest()[:16], origin)


def _parted(
    documents: Mapping[str, bytes], share: float | None, named: Collection[str]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    if named:
        back = {key: len(documents[key]) for key in documents if key in named}
    else:
        # By hash of the name: adding a document to the corpus moves no other between the parts.
        rank = sorted(documents, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        back = hold_back({key: len(documents[key]) for key in rank}, share)
    train, validation = dict[str, bytes](), dict[str, bytes]()
    for key, content in documents.items():
        cut = len(content) - back.get(key, 0)
        if 0 < cut < len(content):
            cut = boundary(content, cut)
            validation[f"{key} (tail)"] = content[cut:]
        elif not cut:
            validation[key] = content
        if cut:
            train[key] = content[:cut]
    return train, validation


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are skipped. Raises UserError that names the line."""
    for number, line in enumerate(files.lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(), object_pairs_hook=once)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} isn't UTF-8 (byte {error.start} of the line)") from None
        except RecursionError:
            raise UserError(f"{path}:{number} is not JSON: nested too deeply") from None
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}:{number} must be an object, such as {{"text": "..."}}')
        yield number, row


def text_of(row: Mapping[str, Any], key: str, path: Path, number: int, hint: str = "") -> str:
    """A row's text under a key. Raises UserError where it has none; hint: what would do too."""
    if key not in row:
        raise UserError(f'{path}:{number} has no text under "{key}"; its keys are {", ".join(row) or "none"}{hint}')
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f'{path}:{number} has no text under "{key}", but {json.dumps(value, default=str)[:40]}{hint}')
    encoded(value, f"{path}:{number}")
    return value


def encoded(text: str, where: str) -> bytes:
    """A text in UTF-8. Raises UserError for half a character, which JSON can write; where: what an error calls the text."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} isn't UTF-8 text: {text[error.start]!a} is half a character; write it whole"
        ) from None
