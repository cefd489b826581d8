"""Workers in the tasks of a Slurm array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runtime.units import counted
from sweeps.launch.launcher import Cancelled, Launcher, Option, Order, Submission
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Task
from sweeps.storage.submissions import job_name, submissions


class Slurm:
    """An array of long-lived workers, submitted as a batch script. They outlive this process."""

    name, here, parallelism = "slurm", False, "array-parallelism"
    title = "with --launcher slurm (defaults: ~/.config/ablate/slurm.toml, or $ABLATE_CONFIG)"
    options: Sequence[Option] = (
        *(Option(name, f"Slurm's {name}", name[0].upper()) for name in ("partition", "account", "qos")),
        Option("time", "time limit of an array task, such as 4h, 90m or 1-12:00:00", "LIMIT"),
        Option("gpus-per-run", "GPUs of an array task (default: one where the partition has GPUs)", "N", "whole"),
        Option("cpus-per-run", "CPUs of each array task (default: Slurm's)", "N", "whole"),
        Option(parallelism, "largest number of array tasks (default: 64)", "N", "whole"),
        Option("sbatch", "any other option of sbatch; may be repeated", "KEY=VALUE", "many"),
        Option("dry-run", "print the batch script; nothing is submitted or written", kind="flag"),
    )

    def launch(self, plan: Any, out: Path, order: Order) -> Submission | None:
        """Submit an array whose tasks claim what waits."""
        from sweeps.launch import slurm, slurm_request  # loads Optuna

        asked = dict(order.options)
        dry_run = bool(asked.pop("dry_run", False))
        asked["sbatch"] = slurm_request.parse_options(asked.get("sbatch") or [])
        request, url = slurm_request.defaults().over(asked), order.storage_url
        return slurm.submit(plan, out, request, storage_url=url, retry_failed=order.retry_failed, dry_run=dry_run)

    def cancel(self, study: Path, folders: Sequence[Path]) -> Cancelled:
        """End the study's jobs."""
        ended = 0
        if submissions(study):
            name = job_name(study.name, study.parent)
            try:
                if ended := len(slurm_jobs.tasks(name=name)):
                    slurm_jobs.cancel(name)
            except slurm_jobs.SlurmError as error:
                raise UserError(f"Slurm doesn't cancel {name}: {error}") from None
        return Cancelled(ended, f"{counted(ended, 'array task')} cancelled")

    def has(self, study: Path) -> bool:
        return bool(submissions(study))

    def tasks(self, study: Path) -> Sequence[Task]:
        try:
            return slurm_jobs.tasks(name=job_name(study.name, study.parent))
        except (slurm_jobs.SlurmError, UserError) as error:
            raise UserError(f"Slurm doesn't say how its tasks are: {error}") from None


LAUNCHER: Launcher = Slurm()
