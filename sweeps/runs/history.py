"""Adding to a study's history: designs as they are run, and results as they are shown."""

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.records import design as designs
from core.records import study_history as history
from core.records.design_changes import changes
from core.records.provenance import commit
from core.records.run_folders import look
from core.records.study_history import DESIGN, LOOK, HistoryError
from core.runtime.printable import say


def add_design(study: Path, design: Mapping[str, Any]) -> None:
    """Note a design that is about to be run, unless it is the one that was noted last. To be called before design.json is
    written: of a study without a history, the design there is noted first."""
    events = _known(study)
    if events is None:
        return
    last = next((event["design"] for event in reversed(events) if event["event"] == DESIGN), None)
    if last is None and (former := _former(study)) is not None:
        at, last = former
        _append(
            study, {"event": DESIGN, "at": at, "git_commit": None, "recorded": len(look(study).records), "design": last}
        )
    fixed = ("adaptive" in design) == ("adaptive" in (last or design))
    if last is None or changes(last, design) or not fixed:
        kept = {name: value for name, value in design.items() if name != "command"}
        _append(study, _now() | {"event": DESIGN, "recorded": len(look(study).records), "design": kept})


def add_look(study: Path, by: str, seeds: int, recorded: int, **more: Any) -> None:
    """Note that results were shown. seeds: of the design; recorded: finished runs; by: the command; unless the very same was
    shown last."""
    events = _known(study)
    event = {"event": LOOK, "by": by, "seeds": seeds, "recorded": recorded} | more
    if events is None or (events and events[-1] | event == events[-1]):
        return
    try:
        if all(known["event"] != DESIGN for known in events) and (former := _former(study)) is not None:
            at, design = former
            _append(study, {"event": DESIGN, "at": at, "git_commit": None, "recorded": recorded, "design": design})
        _append(study, _now() | event)
    except OSError as error:  # somebody else's folder, or a full disk: what is shown is shown all the same
        say(f"note: that these results were shown can't be noted in {study}: {error.strerror}", file=sys.stderr)


def _known(study: Path) -> list[dict[str, Any]] | None:
    """The events; None where they can't be read: a damaged history is left as it is, and reports say so."""
    try:
        return history.read(study)
    except HistoryError:
        return None


def _former(study: Path) -> tuple[str, dict[str, Any]] | None:
    """The design in a study's folder and when it was written."""
    path = study / designs.FILE_NAME
    try:
        design = designs.read(path)
    except (OSError, ValueError):
        return None
    return _stamp(path.stat().st_mtime), design


def _now() -> dict[str, Any]:
    return {"at": _stamp(datetime.datetime.now().timestamp()), "git_commit": commit()}


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _append(study: Path, event: Mapping[str, Any]) -> None:
    study.mkdir(parents=True, exist_ok=True)
    with (study / history.FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
