"""Adding to a study's history: designs as they are run, and results as they are shown."""

import datetime
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.records import designs, study_history
from core.records.designs import Design, StudyDesign
from core.records.provenance import commit
from core.records.run_folders import list_runs
from core.records.study_history import DesignEvent, Event, HistoryError, Look, changes, designs_of
from core.runtime.json_files import append_line
from core.runtime.printable import say


def add_design(study: Path, design: StudyDesign) -> None:
    """Note a design that is about to be run, unless it is the one that was noted last. To be called before design.json is
    written: of a study without a history, the design there is noted first."""
    events = _known(study)
    if events is None:
        return
    noted = designs_of(events)
    last = noted[-1].design if noted else None
    if last is None and (former := _former(study, _recorded(study))) is not None:
        _append(study, former)
        last = former.design
    if last is None or changes(last, design) or _is_adaptive(last) != _is_adaptive(design):
        _append(study, DesignEvent(**_now(), recorded=_recorded(study), design=replace(design, command="")))


def add_look(study: Path, by: str, seeds: int, recorded: int, winner: str | None = None) -> None:
    """Note that results were shown. seeds: of the design; recorded: finished runs; by: the command; unless the very same was
    shown last."""
    events = _known(study)
    if events is None:
        return
    last = events[-1] if events else None
    if isinstance(last, Look) and (last.by, last.seeds, last.recorded, last.winner) == (by, seeds, recorded, winner):
        return
    try:
        if not designs_of(events) and (former := _former(study, recorded)) is not None:
            _append(study, former)
        _append(study, Look(**_now(), recorded=recorded, by=by, seeds=seeds, winner=winner))
    except OSError as error:  # somebody else's folder, or a full disk: what is shown is shown all the same
        say(f"note: that these results were shown can't be noted in {study}: {error.strerror}", file=sys.stderr)


def _recorded(study: Path) -> int:
    return len(list_runs(study).records)


def _is_adaptive(design: StudyDesign) -> bool:
    return isinstance(design, Design) and design.adaptive is not None


def _known(study: Path) -> list[Event] | None:
    """The events; None where they can't be read: a damaged history is left as it is, and reports say so."""
    try:
        return study_history.read(study)
    except HistoryError:
        return None


def _former(study: Path, recorded: int) -> DesignEvent | None:
    """The design in a study's folder and when it was written."""
    path = study / designs.FILE_NAME
    try:
        return DesignEvent(at=_stamp(path.stat().st_mtime), recorded=recorded, design=StudyDesign.read(path))
    except (OSError, ValueError):
        return None


def _now() -> dict[str, Any]:
    return {"at": _stamp(datetime.datetime.now().timestamp()), "git_commit": commit()}


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _append(study: Path, event: DesignEvent | Look) -> None:
    append_line(study / study_history.FILE_NAME, event.to_json())
