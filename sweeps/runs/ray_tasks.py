"""Tasks of a submission to Ray, each a file in its folder that the task's actor touches while it lives. Read without Ray.

sweeps.launch.ray_actor writes them: task-<number>.json with "state", "restarts" and "node".
"""

import time
from collections.abc import Collection
from pathlib import Path

from core.runtime import json_files
from core.runtime.units import duration
from sweeps.runs.array_tasks import Task

CANCELLED = "cancelled"  # the file that tells the actors of a submission to end
STALE_S = 120.0  # without word of an actor that touches its file every few seconds; clocks of nodes may differ by less


def task_file(folder: Path, number: int | str) -> Path:
    """The file of a task."""
    return folder / f"task-{number}.json"


def tasks(*, jobs: Collection[str]) -> list[Task]:
    """The tasks of submissions, by their folders, that wait, run or are to be started again."""
    found = []
    for job in jobs:
        if (Path(job) / CANCELLED).exists():
            continue
        found += [task for path in sorted(Path(job).glob(task_file(Path(), "*").name)) if (task := _read(job, path))]
    return found


def _read(job: str, path: Path) -> Task | None:
    """The task of a file; None where it has just ended. One that isn't heard of is over: its start counts as a former one."""
    try:
        said, silent_s = json_files.read(path), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    state, restarts, reason = said["state"], max(0, said["restarts"]), "None"
    if state == "PENDING":
        reason = "waits for room in Ray's cluster"
    elif silent_s > STALE_S:
        state, restarts, reason = "LOST", restarts + 1, f"no word for {duration(silent_s)}"
    return Task(job, path.stem.removeprefix("task-"), state, reason, restarts, None, said["node"], launcher="Ray")
