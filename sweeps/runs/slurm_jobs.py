"""Slurm's commands: bounded in time, tried again while its controller is away, and their errors as one line."""

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence

from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from core.errors import UserError
from sweeps.runs.array_tasks import Place, Task

TIMEOUT_S = 20.0
PAUSES_S = (1.0, 3.0, 10.0)
FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "RestartCnt", "TimeLeft", "NodeList", "JobID")
AWAY = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "unable to establish",
    "zero bytes",
)
GONE = "invalid job id"

log = logging.getLogger(__name__)


class SlurmError(RuntimeError):
    """Error of a Slurm command, in one line. killed: it was ended by a signal."""

    def __init__(self, line: str, *, killed: bool = False) -> None:
        super().__init__(line)
        self._killed = killed

    def passes(self, texts: Collection[str]) -> bool:
        """True if it is worth another try: its line has one of the texts, or the command was killed."""
        return self._killed or any(text in str(self).lower() for text in texts)


def is_installed() -> bool:
    """True if Slurm's commands are on the PATH."""
    return shutil.which("sbatch") is not None


def call(*command: str, again: Collection[str] = AWAY) -> str:
    """Run one of Slurm's commands and return what it printed.

    It is tried again when its error has one of the texts in `again`. Raises UserError where Slurm isn't installed, and
    SlurmError with the command's own last line.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"Slurm isn't here: '{command[0]}' is not on the PATH (without --launcher, runs train on this machine)"
        )
    attempts = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, SlurmError) and error.passes(again)),
        stop=stop_after_attempt(1 + len(PAUSES_S)),
        wait=wait_chain(*map(wait_fixed, PAUSES_S)),
        sleep=time.sleep,
        before_sleep=before_sleep_log(log, logging.INFO),
        reraise=True,
    )
    return attempts(_call, command)


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {TIMEOUT_S:g} s") from None
    if done.returncode:
        line = _last_line(done.stderr) or f"{command[0]} ended with status {done.returncode}"
        raise SlurmError(line, killed=done.returncode < 0)
    return done.stdout


def submit(script: str) -> str:
    """Submit a batch script and return the job's number. Raises UserError with Slurm's reason when it is refused."""
    try:
        # Not after a lost answer: the job may have been taken.
        return call("sbatch", "--parsable", script, again=AWAY[:1]).strip().partition(";")[0]
    except SlurmError as error:
        raise UserError(f"Slurm refuses the job: {error}") from None


def has_gpus(partition: str | None) -> bool:
    """True if nodes of a partition, or of the default one, have GPUs, as Slurm says; False where it can't be asked."""
    chosen = [f"--partition={partition}"] if partition else []
    try:
        lines = call("sinfo", "--noheader", "--format=%P %G", *chosen, again=()).splitlines()
    except (SlurmError, UserError) as error:
        log.info("partitions: %s", error)
        return False
    return any("gpu" in line.partition(" ")[2] for line in lines if partition or line.split(" ")[0].endswith("*"))


def tasks(*, name: str | None = None, jobs: Collection[str] = ()) -> list[Task]:
    """The array tasks of a job name, or of jobs by number, that Slurm hasn't done with."""
    chosen = [f"--name={name}"] if name is not None else [f"--jobs={','.join(sorted(jobs))}"]
    wanted = ",".join(f"{field}:|" for field in FIELDS)
    try:
        text = call("squeue", "--noheader", "--array", *chosen, f"--Format={wanted}")
    except SlurmError as error:
        if GONE in str(error).lower():
            return []
        raise
    return [_parse(line) for line in text.splitlines() if line.strip()]


def cancel(name: str) -> None:
    """End all of this user's jobs of that name."""
    call("scancel", f"--name={name}", f"--user={os.geteuid()}")


def requeue(place: Place) -> bool:
    """Have Slurm start this task again, unless it has decided otherwise already (cancelled, requeued). Says whether it was.

    A job that ends inside its GraceTime isn't requeued by Slurm, so a preempted task must do it itself.
    """
    mine = [task for task in tasks(jobs=[place.job]) if task.name == place.name]
    if not mine or mine[0].state != "RUNNING" or mine[0].restarts != place.restarts:
        return False
    call("scontrol", "requeue", place.name)
    return True


def _parse(line: str) -> Task:
    array, task, state, reason, restarts, left, nodes, job = (part.strip() for part in line.split("|")[: len(FIELDS)])
    task = "" if task == "N/A" else task
    return Task(
        array or job, task, state, reason, int(restarts or 0), 0.0 if left.startswith("-") else seconds(left), nodes
    )


def seconds(text: str) -> float | None:
    """Seconds of days-hours[:minutes[:seconds]], [hours:]minutes:seconds or minutes, as Slurm writes a time; None for
    another text, such as UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        return None
    days, *clock = found.groups()
    numbers = [int(number) for number in clock if number is not None]
    if days is None and len(numbers) < 3:  # minutes[:seconds], else [days-]hours[:minutes[:seconds]]
        numbers = [0, *numbers]
    hours, minutes, second = (*numbers, 0, 0)[:3]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + second)


def _last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
