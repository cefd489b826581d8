"""Runs that were mirrored offline, and sending them to W&B, once each.

`wandb sync` sends. What it doesn't know is here: which runs are in training, which are at W&B already, and what of a run
arrived before its sending broke. Its own marker (`.wandb.synced`) says less: it is also set after the server refused a
run's rows, and a second sending appends them again. So each segment has a file of ours beside it: sync.json, {"sent",
"reason"}, written before its sending begins and again when it ended.
"""

import json
import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.run_record import write_atomically
from core.runtime.child_process import module_command
from sweeps.runs.folders import LOCK_FILE, RunLock, is_held
from sweeps.storage.redaction import safe_url, without_secrets
from sweeps.tracking.wandb_log import Log, copy_after, read
from sweeps.tracking.wandb_run import OF_ONE_RUN

STATE, LOCK_FOLDER = "sync.json", ".sync"
BROKEN, CRASHED = "its sending was cut off", "`wandb sync` ended with"
BATCH = 100  # runs to a `wandb sync`
API_TIMEOUT_S = 20
# A connection that is gone is an error after about a minute, not after hours; the environment may say otherwise.
PATIENCE = {
    f"WANDB__{what}_{name}": value
    for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for name, value in (("RETRY_MAX", "5"), ("RETRY_WAIT_MAX_SECONDS", "15"))
}
# Meant for runs, not for sending them; and our own service process, which a crash would end.
FOREIGN = ("WANDB_MODE", "WANDB_SILENT", "WANDB_QUIET", *OF_ONE_RUN)


@dataclass(frozen=True)
class OfflineRun:
    """One W&B run of which segments wait, oldest first: it was stopped and gone on with, maybe more than once.

    sent: its segments that W&B has. begun: some of what waits may be there already.
    """

    run_id: str
    folder: Path
    waiting: tuple[Path, ...]
    sent: tuple[Path, ...] = ()
    begun: bool = False

    @property
    def label(self) -> str:
        """As the run is called elsewhere: arm and seed."""
        return f"{self.folder.parent.name} seed {self.folder.name.split('-')[1]}"


@dataclass(frozen=True)
class Offline:
    """A study's offline runs. training: how many are left alone, as they are in training. sent: how many W&B has."""

    waiting: tuple[OfflineRun, ...]
    training: int
    sent: int


def offline_runs(study: Path) -> Offline:
    """Find the runs of a study that wait for being sent. Reads names and small files alone."""
    segments = defaultdict(list)
    for path in sorted(study.glob("*/seed-*/wandb/offline-run-*/run-*.wandb")):
        segments[path.parents[2], path.stem.removeprefix("run-")].append(path)
    waiting, training, sent = [], 0, 0
    for (folder, run_id), paths in segments.items():
        states = {path: _state(path) for path in paths}
        left = tuple(path for path in paths if not states[path].get("sent"))
        if not left:
            sent += 1
        elif is_held(folder / LOCK_FILE) or is_held(folder.parent / LOCK_FILE):  # a search locks configurations
            training += 1
        else:
            begun = any(states[path] for path in left) or any(folder.glob(f"wandb/run-*-{run_id}"))
            there = tuple(path for path in paths if path not in left)
            waiting.append(OfflineRun(run_id, folder, left, there, begun))
    return Offline(tuple(waiting), training, sent)


def sending(study: Path) -> RunLock:
    """The right to send a study's runs. Raises UserError while another has it."""
    lock = RunLock(study / LOCK_FOLDER)
    if not lock.acquire():
        raise UserError(f"another `ablate sync` of {study.name} is under way: wait for it, or stop it")
    return lock


class Server:
    """W&B, asked who we are and what it has."""

    def __init__(self) -> None:
        """Raises UserError without credentials, ConnectionError where W&B doesn't take them or doesn't answer."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import wandb

        from sweeps.tracking.wandb_run import has_credentials

        settings = wandb.setup().settings
        if not has_credentials(settings.base_url, settings.api_key):
            raise UserError(f"no credentials for {safe_url(settings.base_url)}: `wandb login`, or set WANDB_API_KEY")
        self._errors = wandb.errors.Error
        try:
            self._api = wandb.Api(timeout=API_TIMEOUT_S)
        except wandb.errors.Error as error:
            raise ConnectionError(without_secrets(str(error))) from None

    def last_step(self, log: Log) -> int:
        """The last step of a run's history there; -1 where there is none. Raises ConnectionError."""
        entity = log.entity or self._api.default_entity
        try:
            return int(self._api.run(f"{entity}/{log.project}/{log.run_id}").lastHistoryStep)
        except self._errors as error:
            if "could not find run" in str(error).lower():
                return -1
            raise ConnectionError(without_secrets(str(error))) from None


def send(
    runs: Sequence[OfflineRun], server: Server, handles: tuple[int, ...], on_sent: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Send runs, and return why those that weren't sent were not, by id. Needs the right to send them.

    handles: of the lock, which `wandb sync` holds too. on_sent: called after each segment.
    """
    failures: dict[str, str] = {}
    for first in range(0, len(runs), BATCH):
        batch = runs[first : first + BATCH]
        with tempfile.TemporaryDirectory(prefix="ablate-sync-") as scratch:
            prepared = {}
            for run in batch:
                try:
                    prepared[run] = _prepared(run, server, Path(scratch) / run.run_id)
                except (UserError, ConnectionError, OSError) as error:
                    failures[run.run_id] = str(error)
                    _remember(run, failures[run.run_id])
            found = _sent(prepared, handles, on_sent) if prepared else {}
        if len(prepared) > 1:  # a run at which `wandb sync` crashed takes no other with it
            for run in [run for run in prepared if found.get(run.run_id, "").startswith(CRASHED)]:
                found.pop(run.run_id)
                found |= send([replace(run, begun=True)], server, handles, on_sent)
        failures |= found
    return failures


def _prepared(run: OfflineRun, server: Server, scratch: Path) -> dict[Path, Path]:
    """Its segments and what is to be sent of each: itself, or a copy without the rows that an earlier one has, or W&B.

    A run that goes on from a checkpoint does some steps again, to the same losses; W&B would number them anew.
    """
    logs = sorted((read(path) for path in run.waiting), key=lambda log: log.started)
    last = max((step for path in run.sent for step in read(path).steps), default=-1)
    if run.begun:
        last = max(last, server.last_step(logs[0]))
    files = {}
    for number, log in enumerate(logs):
        files[log.path] = log.path
        if log.torn or any(step <= last for step in log.steps):
            folder = scratch / f"offline-run-{number}"
            folder.mkdir(parents=True)
            (folder / "files").symlink_to(log.path.parent.absolute() / "files")
            files[log.path] = folder / log.path.name
            copy_after(log.path, files[log.path], last)
        last = max(last, *log.steps, -1)
    return files


def _sent(
    prepared: Mapping[OfflineRun, Mapping[Path, Path]], handles: tuple[int, ...], on_sent: Callable[[], None]
) -> dict[str, str]:
    lines: list[str] = []
    for run in prepared:
        _remember(run, BROKEN)
    try:
        status = _wandb_sync([file for files in prepared.values() for file in files.values()], handles, lines, on_sent)
    finally:
        failures = {run.run_id: reason for run, files in prepared.items() if (reason := _failure(run, files, lines))}
        for run in prepared:
            _remember(run, failures.get(run.run_id))
    if status and failures:
        said = next((line for line in lines if line.startswith("panic:")), (lines or [""])[-1])
        crashed = without_secrets(f"{CRASHED} {status}: {said}")
        failures = {key: crashed if why == BROKEN else why for key, why in failures.items()}
    return failures


def _wandb_sync(files: Iterable[Path], handles: tuple[int, ...], lines: list[str], on_sent: Callable[[], None]) -> int:
    """Run `wandb sync`, which holds the lock too: should we be killed, it goes on. Returns its exit status."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    command = module_command("wandb", "sync", "--include-synced", "--include-online")
    with subprocess.Popen(
        [*command, *(str(file.absolute()) for file in files)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment, pass_fds=handles,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if "Finished syncing" in line:
                    on_sent()
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _failure(run: OfflineRun, files: Mapping[Path, Path], lines: Sequence[str]) -> str | None:
    said = [line for line in lines if run.run_id in line and "ERROR" in line]
    if said:
        reason = said[0].split("ERROR", 1)[1].strip().split(f"{run.run_id}]", 1)[-1]
        return without_secrets(reason.strip())
    return None if all(_marker(file).exists() for file in files.values()) else BROKEN


def _remember(run: OfflineRun, reason: str | None) -> None:
    """Note beside its segments, and in W&B's marker, that a run was sent, or why not."""
    for path in run.waiting:
        content: dict[str, Any] = {"sent": reason is None, "reason": reason}
        write_atomically(path.with_name(STATE), json.dumps(content) + "\n")
        if reason is None:
            _marker(path).touch()
        else:
            _marker(path).unlink(missing_ok=True)  # `wandb clean` deletes what has it


def _state(path: Path) -> dict[str, Any]:
    """State of a segment; empty before it was begun. `wandb sync`'s word is taken for what it sent by hand."""
    try:
        content: dict[str, Any] = json.loads(path.with_name(STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"sent": True} if _marker(path).exists() else {}
    return content


def _marker(path: Path) -> Path:
    return path.with_suffix(".wandb.synced")
