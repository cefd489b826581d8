"""Workers on the nodes of a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.runtime.units import counted
from sweeps.launch.launcher import Cancelled, Launcher, Option, Order, Submission
from sweeps.runs import ray_tasks
from sweeps.runs.array_tasks import Task
from sweeps.storage.submissions import RAY, submissions


class Ray:
    """Long-lived workers, each kept by an actor of the cluster. They outlive this process."""

    name, here, parallelism = "ray", False, "workers"
    title = "with --launcher ray"
    options: Sequence[Option] = (
        Option("ray-address", "host:port or ray://host:port (default: $RAY_ADDRESS, or the cluster here)", "ADDRESS"),
        Option("gpus-per-run", "GPUs of each worker (default: one where there are GPUs)", "N", "whole"),
        Option("cpus-per-run", "CPUs of each worker (default: Slurm's; of Ray one)", "N", "whole"),
    )

    def launch(self, plan: Any, out: Path, order: Order) -> Submission | None:
        """Have the cluster start workers that claim what waits."""
        from sweeps.launch import ray_cluster  # loads Optuna

        asked = order.options
        request = ray_cluster.Request(
            asked.get("ray_address"), order.workers, asked.get("gpus_per_run"), asked.get("cpus_per_run")
        )
        url = order.storage_url
        return ray_cluster.submit(plan, out, request, storage_url=url, retry_failed=order.retry_failed)

    def cancel(self, study: Path, folders: Sequence[Path]) -> Cancelled:
        """Tell the study's workers to end."""
        from sweeps.launch import ray_cluster  # loads Optuna

        if not self.has(study):
            return Cancelled(0, "")
        ended, notes = ray_cluster.cancel(study)
        return Cancelled(ended, f"{counted(ended, 'Ray worker')} told to end", notes)

    def has(self, study: Path) -> bool:
        return bool(submissions(study, RAY))

    def tasks(self, study: Path) -> Sequence[Task]:
        return ray_tasks.tasks(jobs=[str(folder) for folder in submissions(study, RAY)])


LAUNCHER: Launcher = Ray()
