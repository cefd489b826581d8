"""A sweep on a Ray cluster: long-lived workers, each kept by an actor that outlives the command that submits it.

<out>/<study>/ray/<number>/
    job.json        the resolved plan, which trainer, and the address of the cluster
    storage         the ledger's URL, which may hold a password: only its owner can read it
    environment     variables for the workers, such as W&B's key: only its owner can read it
    task-<n>.json   state of a task (sweeps.runs.ray_tasks)
    log-<n>.txt     what its worker printed
    cancelled       tells all of them to end, once it is there

Workers are detached actors, one for each, and not Ray tasks below a job of `ray job submit`: these end with the driver that
submitted them, and it with the node that it is on. A detached actor belongs to the cluster, which starts it again elsewhere
when its node is lost. It needs no dashboard either.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records import run_record
from core.runtime import json_files
from core.runtime.child_process import SOURCE_ROOT
from core.runtime.units import counted
from sweeps.kinds import operations_of
from sweeps.launch import ray_actor
from sweeps.launch.launcher import Submission
from sweeps.launch.pool import TRAINER, job_of
from sweeps.runs.array_tasks import RAY_CPUS, RAY_JOB, RAY_RESTARTS, RAY_TASK
from sweeps.runs.ray_tasks import CANCELLED, task_file, tasks
from sweeps.storage.storage import choose_url, open_storage, safe_url
from sweeps.storage.submissions import JOB, RAY, STORAGE_FILE, job_name, new_folder, submissions, write_secret
from sweeps.studies.plan import Sweep

NAMESPACE = "ablate"
ENVIRONMENT = "environment"
PASSED_ON = ("ABLATE_", "WANDB_", "HF_")  # beginnings of variables that workers get; the nodes' own are the rest
MISSING = "--launcher ray takes the package ray: pip install ray"
CONNECT_S, LOOK_S = 5.0, 60.0


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster. address: None = $RAY_ADDRESS, or the cluster that runs on this machine. workers: None = as
    many as it has room for. gpus: of each; None = one where the cluster has GPUs. cpus: of each; None = one."""

    address: str | None = None
    workers: int | None = None
    gpus: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        for option, number, least in (
            ("workers", self.workers, 1),
            ("gpus-per-run", self.gpus, 0),
            ("cpus-per-run", self.cpus, 1),
        ):
            if number is not None and number < least:
                raise UserError(f"{option} must be a whole number of at least {least}, not {number!r}")


def submit(
    plan: Sweep,
    out: Path,
    request: Request,
    *,
    storage_url: str | None = None,
    retry_failed: bool = False,
    trainer: str = TRAINER,
) -> Submission | None:
    """Queue what isn't recorded, and have a cluster start the workers; None where nothing waits.

    Raises UserError for what the cluster can't do, before anything is queued.
    """
    out = out.absolute()
    study = out / plan.study_name
    url = choose_url(storage_url, out, study)
    with connected(request.address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        check_storage(url, len(nodes))
        check_folder(ray, out, nodes)
        gpus, notes = gpus_of(plan, request, sum(node["Resources"].get("GPU", 0) for node in nodes))
        needed = {"CPU": request.cpus or 1, "GPU": gpus}
        room = sum(capacity(node["Resources"], needed) for node in nodes)
        runs, most = operations_of(plan.kind).demand(plan, out, open_storage(url), retry_failed=retry_failed)
        if not most:
            return None
        if not room:
            notes = (*notes, f"no node has {_words(needed)} now: the workers wait for one that does")
        workers = min(most, request.workers or max(1, room))
        folder = new_folder(study, RAY)
        name = f"{job_name(plan.study_name, out)}-{folder.name}"
        try:
            address = request.address or os.environ.get("RAY_ADDRESS") or ray.get_runtime_context().gcs_address
            content = job_of(plan, out, trainer) | {"lead_s": 1, "address": address, "name": name}
            run_record.write_atomically(folder / JOB, json.dumps(content))
            write_secret(folder / STORAGE_FILE, url)
            write_secret(folder / ENVIRONMENT, json.dumps(_environment()))
            for number in range(workers):
                _start(ray, folder, f"{name}-{number}", number, needed)
        except BaseException:
            (folder / CANCELLED).touch()
            _kill(ray, name)
            shutil.rmtree(folder)
            raise
    return Submission(folder / JOB, "", workers, runs, name, notes, noun="worker")


def cancel(study: Path) -> tuple[int, tuple[str, ...]]:
    """Tell a study's workers to end; each saves a checkpoint first. Returns how many were told, and notes.

    Those that wait for room are taken out of the cluster's queue, where it answers.
    """
    ended, notes = 0, list[str]()
    for folder in submissions(study, RAY):
        found = tasks(jobs=[str(folder)])
        (folder / CANCELLED).touch()
        if not found:
            continue
        ended += len(found)
        waiting = [task for task in found if task.state != "RUNNING"]
        if waiting:
            job = json_files.read(folder / JOB)
            try:
                with connected(job["address"]) as ray:
                    for task in waiting:
                        _kill(ray, f"{job['name']}-{task.task}")
            except UserError as error:
                notes.append(f"{error}: {counted(len(waiting), 'worker')} that waited there will end when started")
    return ended, tuple(notes)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The package ray inside, connected to a cluster. Raises UserError where it isn't installed, or no cluster answers."""
    try:
        import ray  # seconds, and not everybody has it
    except ImportError:
        raise UserError(MISSING) from None
    named = address or os.environ.get("RAY_ADDRESS") or "auto"
    check_answers(named)
    try:
        ray.init(named, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_answer(named, error) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise UserError where nothing listens at an address: Ray itself would try for minutes, and then end this process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        if address != "auto":
            raise UserError(f"--ray-address {address}: write host:port, ray://host:port or auto")
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = "here" if address == "auto" else f"at {address}"
    return UserError(f"no Ray cluster answers {where} (--ray-address, $RAY_ADDRESS): {reason}")


def check_storage(url: str, nodes: int) -> None:
    """Raise UserError for a storage that several nodes can't use."""
    if url.startswith("sqlite") and nodes > 1:
        raise UserError(
            f"storage {safe_url(url)}: SQLite serves one node, and this cluster has {nodes}; leave --storage out, or use "
            "postgresql://... or grpc://..."
        )


def check_folder(ray: Any, out: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError where a node of the cluster doesn't see the folder of runs, or the locks that others hold there."""
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    out.mkdir(parents=True, exist_ok=True)
    path = out / f".ray-{uuid.uuid4().hex}"
    ray.cloudpickle.register_pickle_by_value(ray_actor)
    try:
        with path.open("x") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            looks = []
            for node in nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                remote = ray.remote(ray_actor.look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
                looks.append(remote.remote(str(path)))
            for node, asked in zip(nodes, looks, strict=True):
                try:
                    wrong = ray.get(asked, timeout=LOOK_S)
                except RayError as error:
                    wrong = f"doesn't answer ({type(error).__name__})"
                if wrong:
                    where = f"node {node['NodeManagerHostname']} of the cluster"
                    raise UserError(f"{out}: {where} {wrong}: name a folder that all nodes share with --out")
    finally:
        path.unlink(missing_ok=True)


def gpus_of(plan: Sweep, request: Request, there: float) -> tuple[int, tuple[str, ...]]:
    """GPUs of each worker, and what to tell of them. there: GPUs of the cluster.

    Raises UserError where other than its runs need were asked for.
    """
    on_cpu = all(config.trainer.accelerator == "cpu" for config in plan.configs)
    if plan.devices > 1:
        if request.gpus not in (None, plan.devices, *([0] if on_cpu else [])):
            raise UserError(
                f"gpus-per-run: a run of {plan.study_name} needs {plan.devices} devices: use {plan.devices}, or leave it out"
            )
        return (request.gpus or 0) if on_cpu else plan.devices, ()
    if on_cpu or request.gpus is not None:
        return request.gpus or 0, ()
    if there:
        return 1, (
            "the cluster has GPUs: one is asked for each run (--gpus-per-run N asks for another number, 0 for none)",
        )
    return 0, ()


def capacity(resources: Mapping[str, float], needed: Mapping[str, int]) -> int:
    """Number of workers that a node has room for."""
    return min(int(resources.get(kind, 0) // number) for kind, number in needed.items() if number)


def _words(needed: Mapping[str, int]) -> str:
    return " and ".join(counted(number, kind) for kind, number in needed.items() if number)


def _environment() -> dict[str, str]:
    """Variables that workers get from this process; the storage's URL has its own file."""
    own = {"ABLATE_STORAGE"}
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) and name not in own}


def _start(ray: Any, folder: Path, name: str, number: int, needed: Mapping[str, int]) -> None:
    task = task_file(folder, number)
    run_record.write_atomically(task, json.dumps({"state": "PENDING", "restarts": -1, "node": ""}))
    settings = {
        "folder": str(folder),
        "number": number,
        "root": str(SOURCE_ROOT),
        "cwd": str(Path.cwd()),
        "module": "sweeps.launch.task",
        "task": task.name,
        "cancelled": CANCELLED,
        "environment": ENVIRONMENT,
        "variables": {RAY_JOB: str(folder), RAY_TASK: str(number), RAY_CPUS: str(needed["CPU"])},
        "restarts_variable": RAY_RESTARTS,
    }
    actor = ray.remote(ray_actor.RayWorker).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=needed["CPU"],
        num_gpus=needed["GPU"],
    )
    actor.remote(settings)


def _kill(ray: Any, prefix: str) -> None:
    """End the actors of a submission, or one of them, by the name that theirs begin with."""
    for name in ray.util.list_named_actors():
        if name == prefix or name.startswith(f"{prefix}-"):
            with contextlib.suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(name))
