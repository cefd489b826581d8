"""Checks of records as they lie in a folder: each by itself, and all of them together."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.config.loading import build
from core.config.run import content_hash
from core.data import inputs
from core.errors import UserError
from core.records import decoded, run_record
from core.records.designs import DecodersDesign
from core.records.provenance import NAMED_FILES, STAGE, lacks_files, named_files
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError
from core.runtime.json_files import are_numbers
from core.runtime.paths import file_sha256
from core.runtime.units import counted
from core.training.checkpoint_files import STAGES, WEIGHTS
from sweeps.runs.folders import data_digest, weights_of

UNREADABLE = (OutOfReachError, UnreadableRecordError, UnicodeDecodeError)
FORMER = "of another design than the one last run here: no report counts it"


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
    """Number of records, and the problems found."""

    complete: int
    failed: int
    missing: int
    findings: tuple[Finding, ...]
    paused: int = 0

    @property
    def trusted(self) -> bool:
        return all(finding.note for finding in self.findings)


def settled(look: Callable[[], Verification]) -> Verification:
    """Problems that two checks in a row find: while a sweep goes on, records come after the ledger was read."""
    first = look()
    if first.trusted:
        return first
    second = look()
    lasting = tuple(finding for finding in second.findings if finding.note or finding in first.findings)
    return replace(second, findings=lasting)


def read_runs(folder: Path, findings: list[Finding]) -> Iterator[Run]:
    """Every record of a study; what can't be read, or lies where it doesn't belong, is a finding."""
    listing = list_runs(folder)
    findings += [Finding(path.relative_to(folder).as_posix(), reason) for path, reason in listing.broken]
    for path in listing.records:
        place = path.parent.relative_to(folder)
        try:
            run = _read(path)
        except FileNotFoundError:  # set aside since it was listed
            continue
        except UNREADABLE as error:
            findings.append(Finding(place.as_posix(), f"its record can't be read: {_reason(error, path)}"))
            continue
        record = run.record
        name = f"seed-{record.seed}-{record.run_hash}-{data_digest(record.data_fingerprint)}"
        if len(place.parts) != 2 or place.name != name or record.study.get("arm") != place.parts[0]:
            findings.append(Finding(place.as_posix(), "a foreign folder: its record belongs elsewhere"))
        yield run


def _read(path: Path) -> Run:
    content = run_record.content(path)
    return Run(path, content, RunRecord.from_json(content.decode()))


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def together(folder: Path, runs: Sequence[Run], compared: list[Run], diffs: Path) -> Iterator[Finding]:
    """Find problems of records as a set. compared: those that are judged beside each other; diffs: folder of patches."""
    yield from _twins(folder, runs)
    yield from _mixtures(compared)
    yield from _differences(runs, diffs)


def each(run: Run) -> Iterator[str]:
    """Find problems of a record by itself and its weights."""
    yield from _hashes(run)
    yield from _numbers(run)
    yield from _weights(run)


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
        yield f"it is {record.status}, and has no metrics"
    bad = [name for name, value in record.metrics.items() if not are_numbers((value,))]
    if bad:
        yield f"not finite: {', '.join(bad)}"
    for kind, columns in (("curve", record.curve), ("validation", record.validation)):
        if len({len(column) for column in columns.values()}) > 1:
            yield f"the columns of its {kind} differ in length"
        bad = [name for name, column in columns.items() if not are_numbers(column)]
        if bad:
            yield f"not finite in its {kind}: {', '.join(bad)}"
    for name, column in record.validation.items():
        if column and name in record.metrics and record.metrics[name] != column[-1]:
            yield f"its {name} {record.metrics[name]} isn't the last of its validations, {column[-1]}"
    load, sparse = record.expert_load, record.config.get("model", {}).get("num_experts")
    if load and sparse and len(load.get("step", [])) != len(load.get("load", [])):
        yield "its expert load has another length than its steps"


def _weights(run: Run) -> Iterator[str]:
    if run.record.provenance.get("weights_sha256", "") is None:
        yield f"{WEIGHTS} was never written: there was no room"
    for name, digest in weights_of(run.record).items():
        try:
            if file_sha256(run.path.parent / name) != digest:
                yield f"{name} isn't the file that was trained"
        except FileNotFoundError:
            yield f"{name} is gone"
        except OSError as error:
            yield f"{name} can't be read: {error.strerror}"


def first_stage(run: Run, place: str) -> Iterator[Finding]:
    """Find problems of the record of a run's first stage."""
    name = run.record.config.get("trainer", {}).get("initial_weights")
    if not isinstance(name, str) or not name.startswith(STAGE) or run.record.status == "failed":
        return
    path = run.path.parent / STAGES / name.removeprefix(STAGE) / run_record.FILE_NAME
    place = f"{place}/{path.parent.relative_to(run.path.parent).as_posix()}"
    try:
        stage = _read(path)
    except FileNotFoundError:
        yield Finding(place, "the record of its first stage is gone")
        return
    except UNREADABLE as error:
        yield Finding(place, f"the record of its first stage can't be read: {_reason(error, path)}")
        return
    yield from (Finding(place, text) for text in each(stage))
    if (stage.record.arm_hash, stage.record.seed) != (path.parent.name, run.record.seed):
        yield Finding(place, "it isn't the first stage that its run starts from")
    if stage.record.status != "complete":
        yield Finding(place, f"it is {stage.record.status}, and its run went on from it")
    if not run.record.before:
        yield Finding(place, "its run's FLOPs and tokens leave it out, by an earlier version", note=True)
    elif run.record.before != stage.record.spent:
        yield Finding(place, f"its run counts {run.record.before} for it, and it took {stage.record.spent}")


def answers(run: Run, place: str, asked: DecodersDesign) -> Iterator[Finding]:
    """Find problems of a finished run's decoded responses. asked: the design's decoders."""
    found, broken = decoded.read_all(run.path.parent)
    place = f"{place}/{decoded.FOLDER}"
    yield from (
        Finding(place, f"{name} can't be read ({why}): ablate decode has it anew") for name, why in broken.items()
    )
    lacking, wanted = 0, decoded.expected(asked, run.record)
    for way in wanted:
        one = found.pop(way.decoder, None)
        if one is None:
            lacking += f"{way.decoder}.json" not in broken
        elif not one.is_of(way):
            yield Finding(
                place, f"{way.decoder}: of other weights, prompts or settings: no report counts it", note=True
            )
        elif one.reason is not None:
            yield Finding(place, f"{way.decoder} failed: {one.reason}", note=True)
        elif said := one.trouble(asked.length, asked.decode_seeds):
            yield Finding(place, f"{way.decoder}: {said}")
    if lacking:
        yield Finding(place, f"{lacking} of {len(wanted)} ways aren't decoded yet: ablate decode", note=True)
    if found:
        yield Finding(place, f"of no way that this design has: {', '.join(found)}", note=True)


def other_data(run: Run, place: str, known: dict[str, str | UserError]) -> Iterator[Finding]:
    """Find differences between a run's data, and files that its config names, and those here. known: of these, by config:
    each is read once."""
    config, trained_on = run.record.config, run.record.data_fingerprint
    files = [(config.get(part) or {}).get(name) for part, name in NAMED_FILES.values()]
    key = json.dumps([config.get("data"), *files], sort_keys=True)
    if key not in known:
        try:
            known[key] = inputs.fingerprint(build(config))
        except UserError as error:
            known[key] = error
    found = known[key]
    if isinstance(found, UserError):
        yield Finding(place, f"its data can't be read here: {found}")
    elif lacks_files(trained_on, found):
        yield Finding(place, f"recorded by a version that didn't note what {named_files(config)} held", note=True)
    elif found != trained_on and trained_on:
        yield Finding(place, f"the data here are {found}, and it was trained on {trained_on}")


def _twins(folder: Path, runs: Sequence[Run]) -> Iterator[Finding]:
    places = defaultdict(list)
    for run in runs:
        places[run.key].append(run.path.parent.relative_to(folder).as_posix())
    for among in places.values():
        if len(among) > 1:
            yield Finding(among[0], f"recorded {len(among)} times: also in {', '.join(among[1:])}")


def _mixtures(runs: list[Run]) -> Iterator[Finding]:
    facts: dict[str, dict[str, int]] = defaultdict(Counter)
    for run in runs:
        provenance = run.record.provenance
        for name in ("git_commit", "git_dirty", "git_diff_sha256", "source_sha256", "python", "device"):
            facts[name][str(provenance.get(name))] += 1
        for package, version in (provenance.get("packages") or {}).items():
            facts[package][str(version)] += 1
    words = {
        "git_commit": "commits",
        "git_dirty": "trees, with and without changes",
        "git_diff_sha256": "uncommitted changes",
        "source_sha256": "source files",
    }
    for name, values in facts.items():
        if len(values) > 1:
            listed = ", ".join(f"{value[:60]} ({count})" for value, count in sorted(values.items()))
            yield Finding("runs compared", f"of different {words.get(name, name)}: {listed}", note=name == "device")


def _differences(runs: Sequence[Run], folder: Path) -> Iterator[Finding]:
    """Find what isn't known of the code that trained. folder: of the patches."""
    without = sum(
        bool(r.record.provenance.get("git_dirty")) and not r.record.provenance.get("git_diff_sha256") for r in runs
    )
    if without:
        yield Finding("code", f"{counted(without, 'run')} of changed code, and what was changed isn't known")
    for wanted in sorted({str(r.record.provenance.get("git_diff_sha256") or "") for r in runs} - {""}):
        path = folder / f"{wanted}.patch"
        if not path.is_file():
            yield Finding("code", f"{folder.name}/{path.name} is missing: it holds what was changed since the commit")
        elif run_record.digest(path.read_bytes()) != wanted:
            yield Finding("code", f"{folder.name}/{path.name} was changed")
