"""What of a folder of runs can't be trusted: everything re-hashed, and held against the design and the ledger."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import records
from core.config import content_hash
from core.data.corpora import fingerprint
from core.errors import UserError
from core.provenance import DIFFS
from core.records import RunRecord, UnreadableRecordError
from core.settings import build
from core.training.weights import WEIGHTS
from sweeps.folders import data_digest

Told = Mapping[
    tuple[str, str], list[Any]
]  # (run hash, data fingerprint) -> the ledger's trials, with state, value, user_attrs


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or with `note` merely worth knowing. place: relative to the folder of the study."""

    place: str
    text: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class Run:
    """A record as it lies there. content: the file's bytes."""

    path: Path
    content: bytes
    record: RunRecord

    @property
    def key(self) -> tuple[str, str]:
        return self.record.run_hash, self.record.data_fingerprint


@dataclass(frozen=True)
class Verification:
    """How many records there are, and what is wrong with them."""

    complete: int
    failed: int
    missing: int
    findings: tuple[Finding, ...]

    @property
    def trusted(self) -> bool:
        return all(finding.note for finding in self.findings)


def verify(
    folder: Path, told: Told | None, *, fingerprint_of: Callable[[Any], str] = fingerprint, diffs: Path | None = None
) -> Verification:
    """Look at every file of a study.

    folder: <out>/<study>. told: the ledger's trials by run; None where there is no ledger. diffs: where they are kept
    (<out>/diffs by default).
    """
    findings: list[Finding] = []
    design = _design(folder, findings)
    runs = list(_runs(folder, findings))
    within = [run for run in runs if design is None or _fits(run, design)]
    known = _Corpora(fingerprint_of)
    for run in runs:
        place = run.path.parent.relative_to(folder).as_posix()
        findings += [Finding(place, text) for text in (*_hashes(run), *_numbers(run), *_weights(run))]
        if run not in within:
            findings.append(
                Finding(place, "of another design than the one last run here: no report counts it", note=True)
            )
            continue
        findings += [Finding(place, text) for text in known.differences(run)]
        if told is not None:
            findings += _ledger(place, run, told.get(run.key, []))
    findings += _lost(folder, runs, told)
    findings += _twins(folder, runs)
    findings += _mixtures([run for run in within if run.record.status == "complete"])
    findings += _differences(runs, diffs or folder.parent / DIFFS)
    if told is None:
        findings.append(Finding("ledger", "there is none: records can't be held against it"))
    cells = {(run.record.arm_hash, run.record.seed): run.record.status for run in within}
    wanted = len(design["arms"]) * len(design["seeds"]) if design else len(cells)
    counts = Counter(cells.values())
    return Verification(counts["complete"], counts["failed"], wanted - len(cells), tuple(findings))


def _design(folder: Path, findings: list[Finding]) -> Mapping[str, Any] | None:
    try:
        design: Mapping[str, Any] = json.loads((folder / "design.json").read_text(encoding="utf-8"))
        arms = {arm["hash"] for arm in design["arms"]}
        if arms and design["seeds"]:
            return design
    except (OSError, ValueError, KeyError, TypeError) as error:
        findings.append(
            Finding("design.json", f"can't be read ({type(error).__name__}): nothing says what was planned")
        )
        return None
    findings.append(Finding("design.json", "names no arms or no seeds"))
    return None


def _runs(folder: Path, findings: list[Finding]) -> Iterator[Run]:
    for path in sorted(folder.rglob(records.FILE_NAME)):
        place = path.parent.relative_to(folder)
        if "attempts" in place.parts:
            continue
        try:
            content = path.read_bytes()
            record = RunRecord.from_json(content.decode())
        except (OSError, UnreadableRecordError, UnicodeDecodeError) as error:
            findings.append(Finding(place.as_posix(), f"its record can't be read: {error}"))
            continue
        name = f"seed-{record.seed}-{record.run_hash}-{data_digest(record.data_fingerprint)}"
        if len(place.parts) != 2 or place.name != name or record.study.get("arm") != place.parts[0]:
            findings.append(Finding(place.as_posix(), "a foreign folder: its record belongs elsewhere"))
        yield Run(path, content, record)


def _fits(run: Run, design: Mapping[str, Any]) -> bool:
    record = run.record
    arms = {arm["hash"] for arm in design["arms"]}
    data = design["data_fingerprint"].split(" ")
    # A run that failed before its data was read has no fingerprint.
    known = record.data_fingerprint in data or record.status == "failed"
    return record.arm_hash in arms and record.seed in design["seeds"] and known


def _hashes(run: Run) -> Iterator[str]:
    record = run.record
    if content_hash(record.config) != record.run_hash:
        yield f"its config doesn't hash to its run hash {record.run_hash}"
    if content_hash(record.config, with_seed=False) != record.arm_hash:
        yield f"its config doesn't hash to its arm hash {record.arm_hash}"
    if record.config.get("seed") != record.seed:
        yield f"its seed {record.seed} isn't its config's {record.config.get('seed')}"


def _numbers(run: Run) -> Iterator[str]:
    record = run.record
    if record.status == "failed":
        if not record.reason:
            yield "it failed, and doesn't say why"
        return
    if not record.metrics:
        yield "it is complete, and has no metrics"
    bad = [name for name, value in record.metrics.items() if not _is_finite(value)]
    if bad:
        yield f"not finite: {', '.join(bad)}"
    for kind, columns in (("curve", record.curve), ("validation", record.validation)):
        if len({len(column) for column in columns.values()}) > 1:
            yield f"the columns of its {kind} differ in length"
        bad = [name for name, column in columns.items() if not all(map(_is_finite, column))]
        if bad:
            yield f"not finite in its {kind}: {', '.join(bad)}"
    for name, column in record.validation.items():
        if column and name in record.metrics and record.metrics[name] != column[-1]:
            yield f"its {name} {record.metrics[name]} isn't the last of its validations, {column[-1]}"
    load = record.expert_load
    if load and len(load.get("step", [])) != len(load.get("load", [])):
        yield "its expert load has another length than its steps"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _weights(run: Run) -> Iterator[str]:
    wanted = run.record.provenance.get("weights_sha256")
    if wanted is None:
        if "weights_sha256" in run.record.provenance:
            yield f"{WEIGHTS} was never written: there was no room"
        return
    try:
        with (run.path.parent / WEIGHTS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        yield f"{WEIGHTS} is gone"
        return
    if found != wanted:
        yield f"{WEIGHTS} isn't the file that was trained"


class _Corpora:
    """The data as they are here, each read once."""

    def __init__(self, fingerprint_of: Callable[[Any], str]) -> None:
        self._fingerprint_of = fingerprint_of
        self._known: dict[str, str | UserError] = {}

    def differences(self, run: Run) -> Iterator[str]:
        data = json.dumps(run.record.config.get("data"), sort_keys=True)
        if data not in self._known:
            try:
                self._known[data] = self._fingerprint_of(build(run.record.config).data)
            except UserError as error:
                self._known[data] = error
        found = self._known[data]
        if isinstance(found, UserError):
            yield f"its data can't be read here: {found}"
        elif found != run.record.data_fingerprint and run.record.data_fingerprint:
            yield f"the data here are {found}, and it was trained on {run.record.data_fingerprint}"


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


def _twins(folder: Path, runs: list[Run]) -> Iterator[Finding]:
    places = defaultdict(list)
    for run in runs:
        places[run.key].append(run.path.parent.relative_to(folder).as_posix())
    for among in places.values():
        if len(among) > 1:
            yield Finding(among[0], f"recorded {len(among)} times: also in {', '.join(among[1:])}")


def _mixtures(runs: list[Run]) -> Iterator[Finding]:
    """What differs between runs that are compared with each other."""
    facts: dict[str, dict[str, int]] = defaultdict(Counter)
    for run in runs:
        provenance = run.record.provenance
        for name in ("git_commit", "git_dirty", "git_diff_sha256", "python", "device"):
            facts[name][str(provenance.get(name))] += 1
        for package, version in (provenance.get("packages") or {}).items():
            facts[package][str(version)] += 1
    words = {
        "git_commit": "commits",
        "git_dirty": "trees, with and without changes",
        "git_diff_sha256": "uncommitted changes",
    }
    for name, values in facts.items():
        if len(values) > 1:
            listed = ", ".join(f"{value[:60]} ({count})" for value, count in sorted(values.items()))
            yield Finding("runs compared", f"of different {words.get(name, name)}: {listed}", note=name == "device")


def _differences(runs: list[Run], folder: Path) -> Iterator[Finding]:
    without = sum(
        bool(r.record.provenance.get("git_dirty")) and not r.record.provenance.get("git_diff_sha256") for r in runs
    )
    if without:
        yield Finding("code", f"{without} runs are of changed code, and what was changed isn't known")
    for wanted in sorted({str(r.record.provenance.get("git_diff_sha256") or "") for r in runs} - {""}):
        path = folder / f"{wanted}.patch"
        if not path.is_file():
            yield Finding("code", f"{folder.name}/{path.name} is missing: it holds what was changed since the commit")
        elif records.digest(path.read_bytes()) != wanted:
            yield Finding("code", f"{folder.name}/{path.name} was changed")
