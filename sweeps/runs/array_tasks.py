"""Tasks of jobs: what a launcher says of one, and one start of one. Imports nothing, as `--help` imports launchers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

# Of a worker process that Ray's actor keeps: which start of which task it is, and how many CPUs are its own.
RAY_JOB, RAY_TASK, RAY_RESTARTS = "ABLATE_RAY_JOB", "ABLATE_RAY_TASK", "ABLATE_RAY_RESTARTS"
RAY_CPUS = "ABLATE_RAY_CPUS"


@dataclass(frozen=True)
class Place:
    """One start of one array task: it ends when Slurm starts the task again, or the job is gone."""

    launcher: ClassVar[str] = "Slurm"

    job: str
    task: str
    restarts: int

    @property
    def name(self) -> str:
        return f"{self.job}_{self.task}"

    @property
    def label(self) -> str:
        """Name for people."""
        return self.name

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place | None":
        """The task of this process; None outside of one."""
        if RAY_JOB in environment:
            return RayPlace(environment[RAY_JOB], environment[RAY_TASK], int(environment[RAY_RESTARTS]))
        if "SLURM_ARRAY_JOB_ID" not in environment:
            return None
        restarts = int(environment.get("SLURM_RESTART_COUNT") or 0)
        return cls(environment["SLURM_ARRAY_JOB_ID"], environment["SLURM_ARRAY_TASK_ID"], restarts)


class RayPlace(Place):
    """One start of one of Ray's actors. job: the folder of its submission."""

    launcher = "Ray"

    @property
    def label(self) -> str:
        return f"Ray task {self.task}"


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
