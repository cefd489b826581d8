"""One worker process of this machine: works through a job's queue.

    python -m sweeps.launch.process JOB.json

Its parent starts it, or has it forked by core.runtime.fork_template, with the storage's URL in ABLATE_STORAGE (it may hold a
password, so it isn't in the job file), its CPU cores as a JSON list in ABLATE_CORES, a pipe on stdin whose end tells that the
parent is gone, a pipe on stdout for events (JSON lines), and its log as stderr.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.provenance import save_diff
from core.runtime.child_process import import_here, leave_with_parent, take_events_pipe
from core.runtime.printable import log_to_stderr
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training.seals import check_key
from sweeps.kinds import module_of, operations_in
from sweeps.launch.pool import CORES_VARIABLE, TRAINER
from sweeps.launch.worker import StopSignal, Train, Worker
from sweeps.runs.liveness import Workplace
from sweeps.runs.queue import Queue
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import STORAGE_VARIABLE, open_storage


def trainer_of(name: str = TRAINER) -> Train:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    train: Train = getattr(import_here(module), function)
    return train


def queue_of(job: dict[str, Any], storage: PatientStorage, workplace: Workplace) -> Queue[Any]:
    """The queue of a job's plan: {"operations", "plan", "out", ...}.

    operations: the module of the kind's operations, which a worker imports though it doesn't know the kind. In a job of an
    earlier version the plan names the kind.
    """
    os.environ.update(job.get("environment", {}))  # before the plan is read: its configs import their plugins
    operations = operations_in(job.get("operations") or module_of(job["plan"].get("kind", "ablation")))
    return operations.queue(operations.plan_of(job["plan"]), Path(job["out"]), storage, workplace)


def main(arguments: list[str]) -> None:
    """Work through a job file: {"operations", "plan", "out", "trainer"}."""
    emit = take_events_pipe()
    leave_with_parent(sys.stdin.fileno())
    stop = StopSignal()
    log_to_stderr()
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    cores = json.loads(os.environ[CORES_VARIABLE])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    train = trainer_of(job["trainer"])
    if "torch" in sys.modules:  # what the trainer needs was imported with it
        sys.modules["torch"].set_num_threads(len(cores))
    try:
        storage = open_storage(os.environ[STORAGE_VARIABLE], Patience.of_environment(stop.check))
        queue = queue_of(job, storage, Workplace())
        storage.patience.call(lambda again: save_diff(queue.out), no_space)
        check_key()
        Worker(queue, train, emit, stop).work()
    except (OutOfPatienceError, UserError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
