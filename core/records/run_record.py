"""Record of a run: one line of JSON, written completely or not at all.

A folder of runs holds one `record.json` each; `cat */record.json` is JSON Lines. Everything that a report needs is in
the records: no other file is read to rebuild it.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.records import fencing, field_checks
from core.records.fencing import FencedOffError
from core.runtime import json_files
from core.runtime.json_files import DamagedFileError
from core.runtime.paths import sync_folder

SCHEMA = 1
FILE_NAME = "record.json"
ATTEMPTS = "attempts"
_TOKENS = (("trainer", "steps"), ("trainer", "batch_size"), ("data", "sequence_length"))
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none


class UnreadableRecordError(ValueError):
    """A record file that can't be trusted: half-written, damaged or of a newer schema."""


class OutOfReachError(UserError):
    """A record file that can't be opened: whether the run is finished isn't known, so nobody trains it again."""


@dataclass(frozen=True)
class RunRecord:
    """One run: finished, failed, or paused part-way on purpose (its checkpoint lies beside it).

    metrics: final values by name ("val/nelbo" in nats per token, "load/max_vio", ...); empty when the run failed.
    curve: columns of equal length logged during training; "step" and "tokens" (seen so far) say where, the rest are
        means over the steps since the row before ("train/nelbo", "train/load_balancing", "train/z_loss", ...).
    validation: columns of equal length, "step" and "tokens" and every validation metric ("val/nelbo", ...).
    expert_load: {"step": [T], "load": [T][layers][experts]}, shares of the assignments that sum to 1 over experts.
    routing: of S sparse layers at V validations: {"step": [V], "top1_probability", "max_vio_batch", "saturation": [V][S],
        "load_by_timestep": [S][10][visible, masked][E], "coactivation": [S][E][E]}, the last two of the final validation.
    best: of the weights kept by trainer.keep_best: {"metric", "value", "step", "weights_sha256"}; empty without any.
    alarms: the first of each kind that rang: [{"step", "kind", "detail"}] (core.training.health).
    notes: sentences about what befell its checkpoints on the way (core.training.checkpoint_files).
    parameters: {"total", "active"} counts; flops: training FLOPs of the whole run, forward and backward, those of the stages
        before it included. before: {"flops", "tokens", "wall_time_s"} that the stages whose weights it started from took in
        all; empty without any. Rows of the curve and validation count its own tokens alone; `tokens` has all.
    study: what the sweep wants remembered about the run's place in it; nothing in core reads it.
    """

    status: Literal["complete", "failed", "paused"]
    run_hash: str
    arm_hash: str
    seed: int
    config: dict[str, Any]
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)
    validation: dict[str, list[float]] = field(default_factory=dict)
    expert_load: dict[str, Any] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wall_time_s: float = 0.0
    tokens_per_second: float = 0.0
    flops: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    data_fingerprint: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    started_at: str = ""
    finished_at: str = ""
    study: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def tokens(self) -> float:
        """Tokens that the weights were trained on, earlier stages included: by the last row; without one, as
        its config asks for."""
        own = (self.validation.get("tokens") or self.curve.get("tokens") or [0.0])[-1]
        if not own and self.status == "complete":
            own = math.prod(self.config.get(part, {}).get(name, 0) for part, name in _TOKENS)
        return own + self.before.get("tokens", 0.0)

    @property
    def spent(self) -> dict[str, float]:
        """As `before` of a run that starts from its weights."""
        wall_time_s = self.wall_time_s + self.before.get("wall_time_s", 0.0)
        return {"flops": self.flops, "tokens": self.tokens, "wall_time_s": wall_time_s}

    def to_json(self) -> str:
        """The record as one line of JSON; NaN and infinities become null (JSON has no word for them)."""
        return json.dumps(_finite(asdict(self)), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "RunRecord":
        """Read a record back. Raises UnreadableRecordError for a text that isn't a whole record of a known schema."""
        try:
            content = json_files.parse(text)
        except DamagedFileError as error:
            raise UnreadableRecordError(str(error)) from None
        if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
            raise UnreadableRecordError("not a run record")
        if content["schema"] > SCHEMA:
            raise UnreadableRecordError(f"schema {content['schema']} is newer than this program's {SCHEMA}")
        unknown = sorted(content.keys() - cls.__dataclass_fields__.keys())  # fields() makes them anew for each
        missing = sorted({"status", "run_hash", "arm_hash", "seed", "config"} - set(content))
        if unknown or missing:
            raise UnreadableRecordError(f"unknown fields {unknown}, missing fields {missing}")
        if (said := field_checks.trouble(content)) is not None:
            raise UnreadableRecordError(said)
        return cls(**content)


def digest(content: bytes) -> str:
    """SHA-256 of a record's file, as of `sha256sum record.json`."""
    return hashlib.sha256(content).hexdigest()


def write(record: RunRecord, folder: Path) -> Path:
    """Write a record into its run's folder, atomically: a reader sees the old file or the new one, never a part.

    A finished record is never replaced: of several processes that write one, the file system takes one's, and the others
    are raised FencedOffError, as is one whose run another has taken over (core.records.fencing).
    """
    path = folder / FILE_NAME
    write_atomically(path, record.to_json() + "\n", _publish)
    return path


def write_atomically(path: Path, text: str, commit: Callable[[Path, Path], None] = fencing.move_in) -> None:
    """Replace a file's content so that a crash at any moment leaves the old content or the new.

    commit: gives the whole file its name. Raises FencedOffError in the folder of a run that another has taken over.
    """
    fencing.check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = fencing.partial_of(path)
    try:
        with partial.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _publish(partial: Path, path: Path) -> None:
    try:
        if fencing.link_in(partial, path):
            return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    content = path.read_bytes() if path.exists() else b""
    with fencing.gone_if_taken(path):
        same = partial.read_bytes() == content
    if same:
        return
    if _is_finished(content):
        raise FencedOffError(f"{path} is there already: another process has recorded this run")
    fencing.move_in(partial, path)  # of a run that was paused, or damaged


def is_finished(folder: Path) -> bool:
    """True if a folder has the record of a run that ended, well or not: one that nothing may replace."""
    path = folder / FILE_NAME
    return path.exists() and _is_finished(path.read_bytes())


def _is_finished(content: bytes) -> bool:
    try:
        return RunRecord.from_json(content.decode()).status != "paused"
    except (UnreadableRecordError, UnicodeDecodeError):
        return False


def read(path: Path) -> RunRecord:
    """Read one record file.

    Raises FileNotFoundError, UnreadableRecordError where it can't be trusted, OutOfReachError where it can't be read now.
    """
    try:
        return RunRecord.from_json(content(path).decode())
    except (UnreadableRecordError, UnicodeDecodeError) as error:
        raise UnreadableRecordError(f"{path}: {error}") from None


def content(path: Path) -> bytes:
    """The bytes of a record's file. Raises as `read` does."""
    try:
        return path.read_bytes()
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except FileNotFoundError:
        if path.is_symlink():
            raise UnreadableRecordError("a link that leads nowhere") from None
        raise
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP):
            raise UnreadableRecordError(f"no file: {error.strerror}") from None
        raise OutOfReachError(f"{path}: can't be read: {error.strerror}") from None


def set_aside(folder: Path) -> Path | None:
    """Move the record, whatever it is, to attempts/N.json, and say where."""
    record = folder / FILE_NAME
    if not os.path.lexists(record):  # a link that leads nowhere is set aside too
        return None
    target = aside(folder)
    if record.is_dir() and not record.is_symlink():
        target.unlink()  # a folder isn't put over a file
    fencing.take_away(record, target)
    return target


def aside(folder: Path) -> Path:
    """The next free attempts/N.json, made empty."""
    attempts = folder / ATTEMPTS
    attempts.mkdir(exist_ok=True)
    number = 1 + max((int(path.stem) for path in attempts.glob("*.json") if path.stem.isdigit()), default=0)
    while True:
        try:
            (attempts / f"{number}.json").open("x").close()
            return attempts / f"{number}.json"
        except FileExistsError:
            number += 1


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
