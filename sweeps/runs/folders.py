"""Layout of a run's folder, and its locks.

<out>/<study>/<arm>/seed-<seed>-<run hash>-<data>/
    .lock           held by the process that works on the run, for as long as it lives
    .claim          which process took the run last: one of before writes nothing more (core.records.fencing)
    losses.json     the workers that died of it, whatever the storage
    record.json     the finished run; never changed once it is there
    progress.json   how far training is
    attempts/N.json records that were set aside: failures that were retried, files that can't be trusted
    stages/HASH/    a first stage, a run like any other, from whose weights this one starts
    wandb/          W&B's own files
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from core.records import designs, fencing, pending_record, run_record
from core.records.designs import StudyDesign
from core.records.fencing import CLAIM_FILE, FencedOffError
from core.records.run_record import ATTEMPTS, RunRecord, UnreadableRecordError, set_aside
from core.runtime.paths import file_sha256
from core.runtime.retry import Patience, no_space
from core.training import checkpoint_files
from sweeps.runs.history import add_design
from sweeps.studies.plan import Plan, PlannedRun, Sweep

LOCK_FILE, LOSSES_FILE = ".lock", "losses.json"
LOOKED_S = (2e-4, 4e-4)  # between tries: whoever looks at a lock holds it for some 20 microseconds
KEPT = {
    LOCK_FILE,
    CLAIM_FILE,
    LOSSES_FILE,
    ATTEMPTS,
    "wandb",
    checkpoint_files.FOLDER,
    checkpoint_files.BEST,
    checkpoint_files.STAGES,
}

log = logging.getLogger(__name__)
_held: set[int] = set()


def run_folder(plan: Sweep, run: PlannedRun, out: Path) -> Path:
    """Folder of a run. Another config or other data have another folder: finished runs are never overwritten."""
    return out / plan.study_name / run.arm / f"seed-{run.seed}-{run.run_hash}-{data_digest(run.fingerprint)}"


def write_design(study: Path, design: StudyDesign) -> None:
    """Say in a study's folder which design was last run there."""
    add_design(study, design)
    run_record.write_atomically(study / designs.FILE_NAME, json.dumps(design.to_json(), indent=2) + "\n")


def keep_design(study: Path, design: StudyDesign) -> None:
    """The same where nothing says so yet: a script that is submitted by hand may be older than what does."""
    if not (study / designs.FILE_NAME).exists():
        write_design(study, design)


def data_digest(fingerprint: str) -> str:
    """Digest of a run's data in its folder's name."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:6]


class RunLock:
    """The right to work on one run: train it, or decide what became of it. Ends with the process, however it ends.

    It can be lost unknown to its owner. Whoever trains the run takes it, too: from then on who had it before has lost it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle = -1
        self._hold: fencing.Hold | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody has it; waits for nobody who works, only an instant for who looks (`is_held`)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
        for pause_s in (*LOOKED_S, 0.0):
            with suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._handle = handle
                _held.add(handle)
                return True
            time.sleep(pause_s)
        os.close(handle)
        return False

    def release(self) -> None:
        """Let go of it; nothing where it isn't held."""
        if self._handle >= 0:
            _held.discard(self._handle)
            os.close(self._handle)
            self._handle = -1

    def take(self) -> None:
        """Take the run from whoever had it: they write nothing into its folder any more."""
        self._hold = fencing.take(self.folder)

    def holds(self) -> bool:
        """True if nobody has taken the run since this process did."""
        return self._hold is None or self._hold.is_valid()

    def heeded(self) -> AbstractContextManager[None]:
        """Inside, this process and its children write into the run's folder only while it is theirs."""
        return nullcontext() if self._hold is None else self._hold.heeded()

    @property
    def handles(self) -> tuple[int, ...]:
        """The open file that is the lock, for a child that is to hold it too."""
        return (self._handle,) if self._handle >= 0 else ()


def is_held(path: Path) -> bool:
    """True if a process holds a lock file at the moment; nothing is made where there is none."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while inside, waiting for whoever holds it; it ends with the process."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _forget_locks() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


# A forked child shares the lock, and would keep it alive after the worker is killed.
os.register_at_fork(after_in_child=_forget_locks)


def recorded(folder: Path, run: PlannedRun) -> RunRecord | None:
    """The run's record, complete or failed, if there is one that can be trusted: readable, of this config and data."""
    try:
        record = run_record.read(folder / run_record.FILE_NAME)
    except (FileNotFoundError, UnreadableRecordError):
        return None
    return record if fits(record, run) else None


def fits(record: RunRecord, run: PlannedRun) -> bool:
    """True if a record is of a run: of its config, on its data, and ended."""
    same = record.run_hash == run.run_hash and record.data_fingerprint == run.fingerprint
    if same and run.first is not None:
        same = designs.first_stage_data(record.study) in (None, run.first_fingerprint)
    return same and record.status in ("complete", "failed")


def rescue(folder: Path, run: PlannedRun, patience: Patience) -> RunRecord | None:
    """The run's record, brought home if it was spilled because its folder was full. Needs the run's lock.

    One that was spilled so long ago that another process has trained the run since, and put other weights into the folder,
    is set aside. Raises OutOfPatienceError when there is one, and still no room for it.
    """
    record = recorded(folder, run)
    if record is None:
        record = pending_record.find(folder)
        if record is None or not fits(record, run):
            return None
        if _is_of_weights(record, folder):
            record = leave(record, folder, run, patience)
        else:
            path, text = run_record.aside(folder), record.to_json() + "\n"
            patience.call(lambda again: run_record.write_atomically(path, text), no_space)
            log.warning("a record of %s came too late, other weights lie there: it is kept as %s", folder, path.name)
            record = None
    pending_record.discard(folder)
    return record


def leave(record: RunRecord, folder: Path, run: PlannedRun, patience: Patience) -> RunRecord:
    """Leave a record in the run's folder, unless another process was first: the record that lies there then."""
    try:
        if recorded(folder, run) is None:
            set_aside(folder)
        pending_record.keep(record, folder, patience)
    except FencedOffError:
        found = recorded(folder, run)
        if found is None:
            raise
        return found
    return record


def weights_of(record: RunRecord) -> dict[str, str]:
    """SHA-256 of each file of weights that a record speaks of, by name."""
    digests = {
        checkpoint_files.WEIGHTS: record.provenance.get("weights_sha256"),
        checkpoint_files.BEST: record.best.get("weights_sha256"),
    }
    return {name: digest for name, digest in digests.items() if digest is not None}


def _is_of_weights(record: RunRecord, folder: Path) -> bool:
    """True if the weights that a record speaks of are those in the folder."""
    try:
        return all(file_sha256(folder / name) == digest for name, digest in weights_of(record).items())
    except FileNotFoundError:
        return False


def clean(folder: Path) -> None:
    """Empty the folder of what an interrupted training left, before the run is trained again. Needs the run's lock."""
    set_aside(folder)
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        fencing.check(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def pending(plan: Plan, out: Path, *, retry_failed: bool = False) -> tuple[PlannedRun, ...]:
    """The runs of a plan that have no trusted record yet; with `retry_failed`, those whose record is a failure too."""

    def is_settled(run: PlannedRun) -> bool:
        record = recorded(run_folder(plan, run, out), run)
        return record is not None and not (retry_failed and record.status == "failed")

    return tuple(run for run in plan.runs if not is_settled(run))
