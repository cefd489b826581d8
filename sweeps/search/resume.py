"""Metrics of a paused run so far."""

from pathlib import Path

from core.records import record as records
from core.records.record import RunRecord, UnreadableRecordError
from core.training.checkpoint_files import saved_step
from sweeps.studies.plan import PlannedRun


def paused_record(folder: Path, run: PlannedRun) -> RunRecord | None:
    """The record of a run that was paused and can go on, of this config and data."""
    try:
        record = records.read(folder / records.FILE_NAME)
    except (FileNotFoundError, UnreadableRecordError):
        return None
    same = record.run_hash == run.run_hash and record.data_fingerprint == run.fingerprint
    return record if same and record.status == "paused" and saved_step(folder) is not None else None


def metrics_at(record: RunRecord, step: int | None) -> dict[str, float] | None:
    """Metrics at a step, whatever was measured since; None without any, and for no step."""
    steps = record.validation.get("step", [])
    if step not in steps:
        return None
    place = steps.index(step)  # of a record that was tampered with a column may be short, or hold nothing there
    row = {name: column[place] for name, column in record.validation.items() if place < len(column)}
    return {name: value for name, value in row.items() if value is not None}
