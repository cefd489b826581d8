"""The looks at a sweep that was bought until decided, as they were noted at the time, and held against its records."""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.study import Study
from analysis.verdicts.until_decided import Look, Retry, course
from core.errors import UserError
from core.records import design as designs
from core.records import record as records
from core.records.provenance import commit
from core.runtime import json_files as jsonfiles
from core.runtime.json_files import is_whole
from core.runtime.units import counted
from sweeps.runs.record_checks import Finding

LOOKS = "looks.jsonl"  # in the folder of runs of a sweep that was bought until decided
AGAIN = "retried"  # in an entry of the trail that is no look: the runs that were trained again after it


def logged(folder: Path) -> list[dict[str, Any]]:
    """The looks that were taken, as they were noted at the time; none where there is no such file.

    Raises UserError for a file that was damaged.
    """
    path = folder / LOOKS
    try:
        return jsonfiles.read_lines(path, _is_look, "look")
    except jsonfiles.DamagedFileError as error:
        raise UserError(f"{path} {error}") from None


def _is_look(look: Any) -> bool:
    return (
        isinstance(look, dict)
        and {"seeds", "at", "design", "decisions", "rule"} <= look.keys()
        and is_whole(look["seeds"])
        and isinstance(look["decisions"], dict)
        and isinstance(look["rule"], dict)
        and "fixed" in look["rule"]
        and designs.are_cells(look.get(AGAIN, []))
    )


def contradictions(folder: Path) -> Iterator[Finding]:
    """Looks that were decided otherwise than their records say now; as a note where it was looked at again since, as runs
    that failed were tried again. Looks of other designs count for nothing."""
    noted = logged(folder)
    if not noted:
        return
    study = Study.load(folder)
    own = of_design(noted, study.design) if study else noted
    if study is None or "adaptive" not in study.design:
        if own:
            planned = study is not None and own[-1]["rule"]["fixed"] == len(study.design["seeds"])
            text = f"the results were looked at {counted(len(own), 'time')}, and this design says nothing of it"
            yield Finding(LOOKS, text, note=planned)
        return
    now = {look.seeds: decisions_of(look) for look in course(study).looks}
    newest = {look["seeds"]: look for look in own}
    for look in own:
        if look["seeds"] in now and look["decisions"] != now[look["seeds"]]:
            text = (
                f"the look after {counted(look['seeds'], 'seed')} of {look['at']} decided otherwise than the "
                f"records say now"
            )
            yield Finding(LOOKS, text, note=look is not newest[look["seeds"]])


def check_not_looked_at(folder: Path, design: Mapping[str, Any]) -> None:
    """Refuse a fixed design of another number of seeds than the one that was looked at: its p-values wouldn't allow for that.

    All the seeds that were planned from the start are a fixed design whatever was looked at on the way.
    """
    noted = of_design(logged(folder), design)
    if noted and noted[-1]["rule"]["fixed"] != len(design["seeds"]):
        raise UserError(
            f"these runs were looked at after {counted(noted[-1]['seeds'], 'seed')}, which a fixed design's "
            f"p-values don't allow for: "
            "go on with --until-decided, or start a new sweep in another --out"
        )


def of_design(noted: Iterable[dict[str, Any]], design: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The looks at these very runs."""
    return [look for look in noted if look["design"] == digest(design) and AGAIN not in look]


def retried(noted: Iterable[dict[str, Any]], design: Mapping[str, Any]) -> list[Retry]:
    """Of these very runs those that were trained again after a look, by how many seeds that was after."""
    return [
        (entry["seeds"], [(arm, seed) for arm, seed in entry[AGAIN]])
        for entry in noted
        if AGAIN in entry and entry["design"] == digest(design)
    ]


def note_retry(folder: Path, design: Mapping[str, Any], cells: Sequence[tuple[str, int]]) -> list[Retry]:
    """Note, before they are trained, that these runs of a design are tried again, if they have been looked at; return all
    such retries.

    What an earlier look saw stays as it was: also of a run that failed again, and was looked at once more without its pair.
    """
    noted = logged(folder)
    if looks := of_design(noted, design):
        last = max(looks, key=lambda look: look["seeds"])
        known = {cell for seeds, each in retried(noted, design) if seeds == last["seeds"] for cell in each}
        if new := [list(cell) for cell in cells if cell not in known]:
            note(folder, design, last["rule"], {"seeds": last["seeds"], "decisions": {}, AGAIN: new})
    return retried(logged(folder), design)


def note(folder: Path, design: Mapping[str, Any], rule: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Add an entry to the trail, with its time and commit."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry: dict[str, Any] = {
        "at": at,
        "git_commit": commit(),
        "design": digest(design),
        "rule": dict(rule),
    }
    with (folder / LOOKS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry | dict(said)) + "\n")


def digest(design: Mapping[str, Any]) -> str:
    """Digest of the runs that a design looks at and of its metric, whatever its seeds."""
    looked_at = [design["metric"], design["data_fingerprint"], sorted(arm["hash"] for arm in design["arms"])]
    return records.digest(json.dumps(looked_at).encode())


def decisions_of(look: Look) -> dict[str, str]:
    return {step.label: step.decision for step in look.steps}
