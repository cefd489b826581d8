"""Status of a study: each run's state from the ledger, its progress, and its launchers' tasks. Reads only."""

import contextlib
import functools
import os
import socket
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from optuna.trial import FrozenTrial, TrialState

from core.errors import UserError
from core.records import designs
from core.records.designs import Design, StudyDesign
from core.records.run_record import FILE_NAME
from core.runtime.json_files import DamagedFileError
from core.runtime.retry import Patience
from sweeps.runs.array_tasks import Task
from sweeps.runs.liveness import PREEMPTED, Workplace, place_of
from sweeps.runs.progress import DecodingProgress, decoding_progress, read_progress
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import choose_url, open_storage

DEAD = "its worker is dead"
GONE = "its record is gone: it is trained again by the next run"
STATES = ("queued", "running", "finished", "failed", "lost", "stopped", "missing")
# The array tasks of the study in a folder; None where a launcher doesn't say, with the reason.
TasksOf = Callable[[Path], tuple[tuple[Task, ...] | None, str | None]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Row of a status: a run, or a search's configuration.

    where: host or Slurm task of its worker. seconds_left: None before anything was measured.
    """

    state: str
    reason: str | None = None
    where: str | None = None
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None

    @property
    def label(self) -> str:
        raise NotImplementedError

    @property
    def folder(self) -> str | None:
        """Folder of a run in training, below the folder of runs."""
        return None


@dataclass(frozen=True, kw_only=True)
class RunStatus(Row):
    """One run.

    state: "lost": its worker is dead; "stopped": left by a sweep that was stopped; "missing": never queued, or its record was
    deleted.
    """

    arm: str
    seed: int
    folder: str | None = None

    @property
    def label(self) -> str:
        return f"{self.arm} seed {self.seed}"


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, kw_only=True)
class StudyStatus(Generic[R]):
    """Status of a study of any kind, by its last design.

    preempted, deaths: how often a row was put back, and lost its worker, so far. tasks: array tasks that wait or run; None
    where a launcher doesn't say, with the reason in `silence`. confirmation: status of the runs that confirm this study, once
    they have begun. noun: what a row is. of_arms: rows are runs of arms. states: those that are counted.
    """

    noun: ClassVar[str] = "run"
    of_arms: ClassVar[bool] = True
    states: ClassVar[tuple[str, ...]]

    study: str
    preempted: int
    deaths: int
    tasks: tuple[Task, ...] | None
    silence: str | None
    seconds_left: float | None
    confirmation: "Status | None" = None

    @property
    def rows(self) -> tuple[R, ...]:
        raise NotImplementedError

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(row.state for row in self.rows)
        return {state: found[state] for state in self.states}

    @property
    def is_under_way(self) -> bool:
        """True if anything is left that a worker would do."""
        return bool(self.of("queued", "running"))

    @property
    def remainder(self) -> str:
        """Text on what is left beside the rows."""
        return ""

    @property
    def awaited(self) -> str:
        """Reason why there is no confirmation yet, where the study's kind has one."""
        return ""

    def details(self) -> Iterator[tuple[str, bool]]:
        """More lines for people, each with whether it tells of a failure."""
        yield from ()

    def of(self, *states: str) -> list[R]:
        return [row for row in self.rows if row.state in states]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return {"counts": self.counts} | asdict(self)


@dataclass(frozen=True, kw_only=True)
class Status(StudyStatus[RunStatus]):
    """All runs of a study's last design. decoded: how far finished runs are decoded; None where the design has no
    decoders."""

    states: ClassVar[tuple[str, ...]] = STATES

    runs: tuple[RunStatus, ...]
    decoded: DecodingProgress | None = None

    @property
    def rows(self) -> tuple[RunStatus, ...]:
        return self.runs

    def details(self) -> Iterator[tuple[str, bool]]:
        if self.decoded is not None:
            left = self.decoded.wanted - self.decoded.answered
            more = f"; ablate decode has the other {left}" if left else ""
            yield f"decoded: {self.decoded.answered} of {self.decoded.wanted} ways of the finished runs{more}", False
            yield from ((f"{count} failed: {reason}", True) for reason, count in self.decoded.failed.items())

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "confirmation"}


def no_tasks(study: Path) -> tuple[tuple[Task, ...], None]:
    """No tasks: no launcher is asked."""
    return (), None


def status(
    study: str,
    out: Path,
    url: str | None = None,
    *,
    storage: PatientStorage | None = None,
    tasks_of: TasksOf = no_tasks,
) -> Status:
    """Read the status of a study's runs. url: of its storage; None = its newest submission's, else the default one's.
    storage: the same, opened before, for whoever looks again and again. tasks_of: asks its launchers.

    Raises UserError when nothing of it has been run there.
    """
    design = read_design(study, out)
    if not isinstance(design, Design):
        raise UserError(f"{out / study} holds a search's runs, not an ablation's: name another folder with --out")
    storage = storage or open_known(study, choose_url(url, out, out / study))
    try:
        trials = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
    except KeyError:
        raise unknown(study) from None
    tasks, silence = tasks_of(out / study)
    by_run = defaultdict(list)
    for trial in trials:
        if trial.user_attrs.get("data_fingerprint", "") in ("", *design.fingerprints):
            by_run[trial.user_attrs.get("arm_hash"), trial.user_attrs.get("seed")].append(trial)
    took = [trial.duration for trial in trials if trial.state == TrialState.COMPLETE and trial.duration is not None]
    mean_s = statistics.fmean(each.total_seconds() for each in took) if took else None
    workplace = Workplace()
    runs = tuple(_run(arm.name, seed, by_run[arm.hash, seed], out, workplace, mean_s) for arm, seed in design.cells)
    reasons = [str(trial.user_attrs.get("reason")) for trial in trials if trial.state == TrialState.FAIL]
    return Status(
        study=study,
        runs=runs,
        preempted=reasons.count(PREEMPTED),
        deaths=sum(reason.startswith("lost: ") for reason in reasons),
        tasks=tasks,
        silence=silence,
        seconds_left=_seconds_left(runs, mean_s),
        decoded=decoding_progress(design, out / study),
    )


def labels(rows: Sequence[Row]) -> str:
    """The first few rows by name, and how many more there are."""
    return ", ".join(row.label for row in rows[:5]) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def read_design(study: str, out: Path) -> StudyDesign:
    """The design last run. Raises UserError where none was, and for a file that is damaged."""
    path = out / study / designs.FILE_NAME
    try:
        return StudyDesign.read(path)
    except FileNotFoundError:
        raise UserError(f"nothing of {study} has been run in {out.absolute()}") from None
    except DamagedFileError as error:
        raise UserError(f"{path} is damaged ({error}): `ablate run` writes it again") from None


def open_known(study: str, url: str, patience: Patience | None = None) -> PatientStorage:
    """Open a storage that is there already, to read it. Raises UserError where it isn't."""
    for scheme in ("journal:", "sqlite:///"):  # opening those would make an empty one
        if url.startswith(scheme) and not os.path.exists(os.path.expanduser(url.removeprefix(scheme))):
            raise UserError(f"storage {url} isn't there: name the one that {study} was run with (--storage)")
    return open_storage(url, patience)


def unknown(study: str) -> UserError:
    """Error for a storage without a study of that name."""
    return UserError(f"the storage knows nothing of {study}: name the one it was run with (--storage)")


def _run(
    arm: str, seed: int, trials: Sequence[FrozenTrial], out: Path, workplace: Workplace, mean_s: float | None
) -> RunStatus:
    run = functools.partial(RunStatus, arm=arm, seed=seed)
    by_state = {trial.state: trial for trial in trials}  # the newest of each
    if done := by_state.get(TrialState.COMPLETE):
        return run(state="missing", reason=GONE) if _lacks_record(done, out) else run(state="finished")
    if running := by_state.get(TrialState.RUNNING):
        where = worker_of(running)
        if not lives(running, workplace):
            return run(state="lost", reason=DEAD, where=where)
        folder = running.user_attrs["folder"]
        progress = read_progress(out / folder) or {}
        return run(
            state="running",
            where=where,
            step=progress.get("step"),
            steps=progress.get("steps"),
            seconds_left=_left(progress, mean_s),
            folder=folder,
        )
    if TrialState.WAITING in by_state:
        return run(state="queued")
    if not trials:
        return run(state="missing")
    last = trials[-1]
    if last.user_attrs.get("status") != "failed":
        return run(state="stopped", reason=last.user_attrs.get("reason"))
    if _lacks_record(last, out):
        return run(state="missing", reason=GONE)
    return run(state="failed", reason=last.user_attrs.get("reason"))


def _lacks_record(trial: FrozenTrial, out: Path) -> bool:
    folder = trial.user_attrs.get("folder")
    return folder is not None and not os.path.lexists(out / folder / FILE_NAME)


def worker_of(trial: FrozenTrial) -> str | None:
    """Host or task of who claimed a trial."""
    place, host = place_of(trial), trial.user_attrs.get("host")
    return host if place is None else f"{place.label} on {host}"


def lives(trial: FrozenTrial, workplace: Workplace) -> bool:
    """True if a trial's worker does, by its launcher's word and on this host by its process: a lock could be in its way."""
    if workplace.is_gone(trial):
        return False
    if trial.user_attrs.get("host") != socket.gethostname():
        return True
    with contextlib.suppress(PermissionError):
        try:
            os.kill(trial.user_attrs["pid"], 0)
        except ProcessLookupError:
            return False
    return True


def _left(progress: Mapping[str, Any], mean_s: float | None) -> float | None:
    if not progress.get("step"):
        return mean_s
    share = progress["step"] / progress["steps"]
    whole_s = mean_s or (progress["updated"] - progress["started"]) / share
    return max(0.0, whole_s * (1 - share) - (time.time() - progress["updated"]))


def _seconds_left(runs: Sequence[RunStatus], mean_s: float | None) -> float | None:
    running = [run for run in runs if run.state == "running"]
    if not running or mean_s is None:
        return None
    queued = sum(run.state == "queued" for run in runs)
    return (sum(run.seconds_left or mean_s for run in running) + queued * mean_s) / len(running)
