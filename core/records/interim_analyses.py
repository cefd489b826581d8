"""looks.jsonl of a study: the interim analyses of a sweep that is run until decided, each as it was noted at the time.

Lines are added and never changed. An entry holds "at", "git_commit", "design" (a digest), "rule", "seeds" (of each arm, at
most), "decisions" (by comparison) and "steps"; or, in place of an analysis, "retried": runs that were trained again after it.
"""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from core.errors import UserError
from core.records import run_record
from core.records.designs import Cell, Design
from core.records.provenance import commit
from core.runtime import json_files
from core.runtime.json_files import Whole

FILE_NAME = "looks.jsonl"
RETRIED = "retried"
Retry = tuple[int, Sequence[tuple[str, int]]]  # after an analysis of so many seeds these cells were trained again


class _Rule(TypedDict):
    fixed: Any


class _Entry(TypedDict):
    at: Any
    design: Any
    seeds: Whole
    decisions: dict[str, Any]
    rule: _Rule
    retried: NotRequired[list[Cell]]


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries of a study's folder, oldest first; none where there is no file. Raises UserError for a damaged one."""
    path = folder / FILE_NAME
    try:
        return json_files.read_lines(path, _Entry, "look")
    except json_files.DamagedFileError as error:
        raise UserError(f"{path} {error}") from None


def add(folder: Path, design: Design, rule: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Add an entry, with its time and commit."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"at": at, "git_commit": commit(), "design": _digest(design), "rule": dict(rule), **content}
    json_files.append_line(folder / FILE_NAME, entry)


def add_retry(folder: Path, design: Design, cells: Sequence[tuple[str, int]]) -> list[Retry]:
    """Note, before they are trained, that these runs of a design are tried again, if analysed. Returns all such retries.

    What an earlier analysis saw stays as it was: also of a run that failed again, and was analysed again without its pair.
    """
    entries = read(folder)
    if analyses := of_design(entries, design):
        last = max(analyses, key=lambda entry: entry["seeds"])
        known = {cell for seeds, each in retried(entries, design) if seeds == last["seeds"] for cell in each}
        if new := [list(cell) for cell in cells if cell not in known]:
            add(folder, design, last["rule"], {"seeds": last["seeds"], "decisions": {}, RETRIED: new})
    return retried(read(folder), design)


def of_design(entries: Iterable[dict[str, Any]], design: Design) -> list[dict[str, Any]]:
    """The analyses of these very runs."""
    return [entry for entry in entries if entry["design"] == _digest(design) and RETRIED not in entry]


def retried(entries: Iterable[dict[str, Any]], design: Design) -> list[Retry]:
    """Of these very runs those that were trained again after an analysis, by how many seeds that was after."""
    return [
        (entry["seeds"], [(arm, seed) for arm, seed in entry[RETRIED]])
        for entry in entries
        if RETRIED in entry and entry["design"] == _digest(design)
    ]


def _digest(design: Design) -> str:
    """Digest of a design's runs and its metric, whatever its seeds."""
    content = [design.metric, design.data_fingerprint, sorted(arm.hash for arm in design.arms)]
    return run_record.digest(json.dumps(content).encode())
