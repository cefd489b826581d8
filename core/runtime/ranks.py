"""Rank and world size from the launcher's environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import UserError

# What every rank imports, and so the template that forks them.
MODULES = ("core.training.run", "core.training.strategy", "core.model.parallel")
LAUNCHED = "ABLATE_RANKS"  # set in processes that core.training.rank_launcher started

# What torchrun and DeepSpeed's launcher set, and what srun sets.
_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ("SLURM_NTASKS_PER_NODE",)),
)


@dataclass(frozen=True)
class Ranks:
    """One process among those that train a run together.

    local_size: how many of them share this host. expert_parallel: how many consecutive ranks hold every expert once.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    expert_parallel: int = 1

    @property
    def expert_rank(self) -> int:
        """This process's place among those that share out the experts."""
        return self.rank % self.expert_parallel

    @property
    def hosts(self) -> int:
        return self.size // self.local_size

    @classmethod
    def of_environment(cls, expert_parallel: int = 1, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """The ranks that torchrun, DeepSpeed's launcher or srun describe; a single process where none did.

        An interactive Slurm shell is a single process. Raises UserError when hosts have unlike numbers of processes.
        """
        slurm_shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive") or "SLURM_STEP_ID" not in environment
        for rank, size, local_rank, local_sizes in _NAMES:
            if rank not in environment or size not in environment or (rank == "SLURM_PROCID" and slurm_shell):
                continue
            world = int(environment[size])
            local = next((environment[name] for name in local_sizes if name in environment), str(world))
            if not local.isdigit() or world % int(local):
                raise UserError(f"{world} processes, {local} on this host: every host must start as many")
            return cls(int(environment[rank]), world, int(environment.get(local_rank, 0)), int(local), expert_parallel)
        return cls(expert_parallel=expert_parallel)
