"""Verification of a folder of runs: everything is hashed again, and held against the design and the ledger."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from core.errors import UserError
from core.records import designs, run_record
from core.records.designs import Design
from core.records.provenance import DIFFS
from core.runtime.json_files import DamagedFileError
from sweeps.runs.record_checks import (
    FORMER,
    Finding,
    Run,
    Verification,
    answers,
    each,
    first_stage,
    other_data,
    read_runs,
    together,
)
from sweeps.runs.trials import Key, by_run

NO_LEDGER = Finding("ledger", "there is none: records can't be held against it")

Told = Mapping[Key, list[FrozenTrial]]  # the ledger's trials by run


class Checks(Protocol):
    """Checks that one kind of study adds."""

    def counts(self, run: Run) -> bool:
        """True if a record is of the design last run."""

    def of_run(self, run: Run, place: str) -> Iterator[Finding]:
        """Find problems of a record of that design, beside those of its own file."""

    def of_ledger(self, runs: Sequence[Run]) -> Iterator[Finding]:
        """Find differences between records and queue."""

    def missing(self, recorded: Collection[tuple[str, int]]) -> int:
        """Number of runs without the record that they should have. recorded: arm hashes and seeds."""


def check_records(folder: Path, runs: Sequence[Run], findings: list[Finding], checks: Checks) -> Verification:
    """Check every record of a study. findings: those so far."""
    known: dict[str, str | UserError] = {}
    within = []
    for run in runs:
        place = run.path.parent.relative_to(folder).as_posix()
        findings += [Finding(place, text) for text in each(run)]
        if checks.counts(run):
            within.append(run)
            findings += [*other_data(run, place, known), *checks.of_run(run, place)]
        else:
            findings.append(Finding(place, FORMER, note=True))
    findings += checks.of_ledger(runs)
    compared = [run for run in within if run.record.status != "failed"]
    findings += together(folder, runs, compared, folder.parent / DIFFS)
    recorded = {(run.record.arm_hash, run.record.seed): run.record.status for run in within}
    counts, missing = Counter(recorded.values()), checks.missing(recorded)
    return Verification(counts["complete"], counts["failed"], missing, tuple(findings), paused=counts["paused"])


def verify(folder: Path, told: Told | None) -> Verification:
    """Look at every file of a study of planned runs.

    folder: <out>/<study>. told: the ledger's trials by run; None where there is no ledger.
    """
    findings: list[Finding] = []
    design = _design(folder, findings)
    runs = list(read_runs(folder, findings))
    return check_records(folder, runs, findings, _RunChecks(folder, design, told))


def trials_by_run(storage: BaseStorage | None, study: str) -> Told | None:
    """A study's trials by run hash and data fingerprint; None where the ledger has none."""
    if storage is None:
        return None
    try:
        return by_run(storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False))
    except KeyError:
        return None


@dataclass(frozen=True)
class _RunChecks:
    """Checks of planned runs. design: None where it can't be read."""

    folder: Path
    design: Design | None
    told: Told | None

    def counts(self, run: Run) -> bool:
        if self.design is None:
            return True
        record = run.record
        # A run that failed before its data was read has no fingerprint.
        known = record.data_fingerprint in self.design.fingerprints or record.status == "failed"
        return known and record.seed in self.design.seeds and record.arm_hash in {arm.hash for arm in self.design.arms}

    def of_run(self, run: Run, place: str) -> Iterator[Finding]:
        yield from first_stage(run, place)
        if self.design is not None and self.design.decoders is not None and run.record.status == "complete":
            yield from answers(run, place, self.design.decoders)
        if self.told is not None:
            yield from _ledger(place, run, self.told.get(run.key, []))

    def of_ledger(self, runs: Sequence[Run]) -> Iterator[Finding]:
        if self.told is None:
            yield NO_LEDGER
            return
        here = {run.key for run in runs}
        for key, trials in self.told.items():
            complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
            if complete and key not in here:
                place = str(complete[0].user_attrs.get("record", "?")).removeprefix(f"{self.folder.name}/")
                place = place.removesuffix(f"/{run_record.FILE_NAME}")
                yield Finding(place, "the ledger has its result, and its record is gone")

    def missing(self, recorded: Collection[tuple[str, int]]) -> int:
        wanted = ((arm.hash, seed) for arm, seed in self.design.cells) if self.design else ()
        return sum(cell not in recorded for cell in wanted)


def _design(folder: Path, findings: list[Finding]) -> Design | None:
    try:
        return Design.read(folder / designs.FILE_NAME)
    except (FileNotFoundError, DamagedFileError) as error:
        why = str(error) if isinstance(error, DamagedFileError) else "there is none"
        findings.append(Finding(designs.FILE_NAME, f"can't be read ({why}): nothing says what was planned"))
        return None


def _ledger(place: str, run: Run, trials: list[FrozenTrial]) -> Iterator[Finding]:
    record, digest = run.record, run_record.digest(run.content)
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
