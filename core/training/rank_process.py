"""One process of a run over several devices.

    python -m core.training.rank_process FOLDER

FOLDER holds config.yaml. core.training.rank_launcher starts it, with its rank in the environment. stdout is a pipe for events
(JSON lines): rank 0's "row" for loggers, and every rank's "record" at the end. Whatever comes on stdin asks for a pause.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config.loading import load
from core.runtime.child_process import leave_with_parent, take_events_pipe
from core.runtime.ranks import Ranks
from core.training import preemption


class Relay:
    """Sends every logged row to the process that started this one, which has the loggers."""

    def __init__(self, emit: Any) -> None:
        self.emit = emit

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.emit(event="row", metrics=metrics, step=step)


def main(arguments: Sequence[str]) -> int:
    """Train as one rank; 1 where that failed."""
    folder = Path(arguments[0])
    emit = take_events_pipe()
    for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm signals every process of a job; the parent decides
        signal.signal(number, lambda *_: None)
    leave_with_parent(sys.stdin.fileno(), preemption.request)
    import torch

    from core.training.run import attempt  # torch and Lightning: while they are imported, the parent may end

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # one that was forked has torch from before
    config = load(folder / "config.yaml")
    ranks = Ranks.of_environment(config.deepspeed.expert_parallel)
    with preemption.heeded():
        record = attempt(config, folder, loggers=[Relay(emit)] if ranks.rank == 0 else [], ranks=ranks)
    emit(event="record", record=record.to_json())
    return 0 if record.status == "complete" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
