"""What of a folder of runs can't be trusted: everything re-hashed, and held against the design and the ledger."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.records import design as designs
from core.records import record as records
from core.records.inputs import fingerprint
from core.records.provenance import DIFFS
from core.runtime.json_files import DamagedFileError
from sweeps.runs.record_checks import (
    FORMER,
    Corpora,
    Finding,
    Run,
    Verification,
    answers,
    each,
    first_stage,
    read_runs,
    together,
)
from sweeps.studies.plan import cells

Told = Mapping[
    tuple[str, str], list[Any]
]  # (run hash, data fingerprint) -> the ledger's trials, with state, value, user_attrs


def verify(
    folder: Path, told: Told | None, *, fingerprint_of: Callable[[Any], str] = fingerprint, diffs: Path | None = None
) -> Verification:
    """Look at every file of a study.

    folder: <out>/<study>. told: the ledger's trials by run; None where there is no ledger. diffs: where they are kept
    (<out>/diffs by default).
    """
    findings: list[Finding] = []
    design = _design(folder, findings)
    runs = list(read_runs(folder, findings))
    fits = [design is None or _fits(run, design) for run in runs]
    within = [run for run, fit in zip(runs, fits, strict=True) if fit]
    known = Corpora(fingerprint_of)
    for run, fit in zip(runs, fits, strict=True):
        place = run.path.parent.relative_to(folder).as_posix()
        findings += [Finding(place, text) for text in each(run)]
        if not fit:
            findings.append(Finding(place, FORMER, note=True))
            continue
        findings += known.differences(place, run)
        findings += first_stage(run, place)
        if design is not None and "decoders" in design and run.record.status == "complete":
            findings += answers(run, place, design["decoders"])
        if told is not None:
            findings += _ledger(place, run, told.get(run.key, []))
    findings += _lost(folder, runs, told)
    compared = [run for run in within if run.record.status == "complete"]
    findings += together(folder, runs, compared, diffs or folder.parent / DIFFS)
    if told is None:
        findings.append(Finding("ledger", "there is none: records can't be held against it"))
    recorded = {(run.record.arm_hash, run.record.seed): run.record.status for run in within}
    wanted = [(arm["hash"], seed) for arm, seed in cells(design)] if design else list(recorded)
    counts = Counter(recorded.values())
    missing = sum(cell not in recorded for cell in wanted)
    return Verification(counts["complete"], counts["failed"], missing, tuple(findings))


def _design(folder: Path, findings: list[Finding]) -> Mapping[str, Any] | None:
    try:
        return designs.read(folder / designs.FILE_NAME)
    except (FileNotFoundError, DamagedFileError) as error:
        why = str(error) if isinstance(error, DamagedFileError) else "there is none"
        findings.append(Finding(designs.FILE_NAME, f"can't be read ({why}): nothing says what was planned"))
        return None


def _fits(run: Run, design: Mapping[str, Any]) -> bool:
    record = run.record
    arms = {arm["hash"] for arm in design["arms"]}
    data = design["data_fingerprint"].split(" ")
    # A run that failed before its data was read has no fingerprint.
    known = record.data_fingerprint in data or record.status == "failed"
    return record.arm_hash in arms and record.seed in design["seeds"] and known


def _ledger(place: str, run: Run, trials: list[Any]) -> Iterator[Finding]:
    record, digest = run.record, records.digest(run.content)
    if not trials:
        yield Finding(place, "the ledger doesn't know it")
        return
    told = {trial.user_attrs["record_sha256"] for trial in trials if "record_sha256" in trial.user_attrs}
    if not told:
        yield Finding(place, "told to the ledger without a hash, by an earlier version", note=True)
    elif digest not in told:
        yield Finding(place, "its record was changed since the ledger was told of it")
    if record.status not in {trial.user_attrs.get("status") for trial in trials}:
        yield Finding(place, f"it is {record.status}, and the ledger says otherwise")
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if len(complete) > 1:
        yield Finding(place, f"the ledger has {len(complete)} results of it")
    for trial in complete:
        value = record.metrics.get(trial.user_attrs.get("metric", ""))
        if record.status == "complete" and trial.value != value:
            yield Finding(place, f"its {trial.user_attrs.get('metric')} is {value}, and the ledger says {trial.value}")


def _lost(folder: Path, runs: list[Run], told: Told | None) -> Iterator[Finding]:
    here = {run.key for run in runs}
    for key, trials in (told or {}).items():
        for trial in trials:
            if trial.state.name == "COMPLETE" and key not in here:
                place = str(trial.user_attrs.get("record", "?")).removeprefix(f"{folder.name}/")
                yield Finding(
                    place.removesuffix(f"/{records.FILE_NAME}"), "the ledger has its result, and its record is gone"
                )
                break
