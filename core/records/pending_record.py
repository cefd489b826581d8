"""A finished run's record, kept elsewhere while its own folder has no room for it.

$ABLATE_SPILL, or a folder of this user's below the system's temporary one, holds one file per record. Whoever deals
with the run next, holding its lock, moves the record to where it belongs.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from core.records import fencing, run_record
from core.records.run_record import RunRecord, UnreadableRecordError
from core.runtime.paths import expanded
from core.runtime.retry import OutOfPatienceError, Patience, no_space

SPILL_VARIABLE = "ABLATE_SPILL"

log = logging.getLogger(__name__)


def keep(record: RunRecord, folder: Path, patience: Patience | None = None) -> Path:
    """Write a record as records.write does; while there is no room, keep it in the spill folder and wait.

    However the wait ends, the record is in one of both places, or in none only if both are full.
    Raises OutOfPatienceError, which says where the record is, and FencedOffError as records.write does.
    """
    spilled: list[Path] = []

    def spill() -> None:
        if not spilled and (path := _spill(record, folder)) is not None:
            spilled.append(path)
            log.warning("the record of %s is kept in %s meanwhile", folder, path)

    try:
        path = (patience or Patience.of_environment()).call(
            lambda again: run_record.write(record, folder), lambda error: _trouble(error, folder), spill
        )
    except OutOfPatienceError as error:
        where = spilled[0] if spilled else "nowhere: the spill folder is full too"
        raise OutOfPatienceError(f"{error}; the finished record is in {where}") from error
    for former in spilled:
        former.unlink(missing_ok=True)
    return path


def find(folder: Path) -> RunRecord | None:
    """The record that was spilled for a run's folder; None where there is none, or none of this user's."""
    path = spill_path(folder)
    try:
        if path.stat().st_uid != os.getuid() or path.is_symlink():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["folder"] != str(folder.absolute()):
            return None
        return RunRecord.from_json(content["record"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, UnreadableRecordError) as error:
        log.warning("%s can't be read as a spilled record: %s", path, type(error).__name__)
        return None


def discard(folder: Path) -> None:
    """Forget what was spilled for a run's folder."""
    spill_path(folder).unlink(missing_ok=True)


def spill_path(folder: Path) -> Path:
    """Path at which the record of a run is kept while its folder's disk is full."""
    chosen = os.environ.get(SPILL_VARIABLE)
    place = Path(expanded(chosen)) if chosen else Path(tempfile.gettempdir()) / f"ablate-spill-{os.getuid()}"
    return place / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:24]}.json"


def _trouble(error: Exception, folder: Path) -> str | None:
    reason = no_space(error)
    return reason and f"the record of {folder} can't be written: {reason}"


def _spill(record: RunRecord, folder: Path) -> Path | None:
    path = spill_path(folder)
    fencing.check(folder)  # what lies there may be of whoever took the run over
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {"folder": str(folder.absolute()), "record": record.to_json()}
        run_record.write_atomically(path, json.dumps(content) + "\n")
    except OSError as error:
        log.warning("the record of %s can't be kept in %s either: %s", folder, path, error.strerror)
        return None
    return path
