"""Array tasks: what a launcher says of one, and one start of one. Imports nothing, as launchers are imported for `--help`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One start of one array task: it ends when Slurm starts the task again, or the job is gone."""

    job: str
    task: str
    restarts: int

    @property
    def name(self) -> str:
        return f"{self.job}_{self.task}"

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place | None":
        """The array task of this process; None outside an array."""
        if "SLURM_ARRAY_JOB_ID" not in environment:
            return None
        restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
        return cls(environment["SLURM_ARRAY_JOB_ID"], environment["SLURM_ARRAY_TASK_ID"], restarts)


@dataclass(frozen=True)
class Task:
    """An array task that waits, runs or is being ended. seconds_left: until its time limit; None = no limit. launcher: whose
    it is, for people."""

    job: str
    task: str
    state: str
    reason: str
    restarts: int
    seconds_left: float | None
    nodes: str
    launcher: str = "Slurm"

    @property
    def name(self) -> str:
        return f"{self.job}_{self.task}"
