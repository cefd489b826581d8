"""A run over several devices of this host: one process each, watched; when one dies, all end and the record says which."""

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from core.config.run import RunConfig
from core.records.metrics import RowLogger
from core.records.run_record import RunRecord
from core.runtime.child_process import BRIEF_SPINNING, STOPPED, import_path
from core.runtime.forking import Process, begin, warm
from core.runtime.ranks import LAUNCHED, MODULES
from core.training import preemption
from core.training.deepspeed_config import uses_cuda

GRACE_S = 3.0  # for the others to say why they end, once one has ended badly
PAUSE_GRACE_S = 30.0  # for the others to end, once one has ended as it was asked to
PROGRAM = "core.training.rank_process"
BROKEN_LINE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
Events = queue.Queue[tuple[int, dict[str, Any]]]  # each with the rank that sent it


class RankFailedError(RuntimeError):
    """A rank ended the run. partial: the record that a surviving rank left of it, if any did."""

    def __init__(self, reason: str, partial: RunRecord | None) -> None:
        super().__init__(reason)
        self.partial = partial


def launch(
    config: RunConfig, folder: Path, devices: int, loggers: Sequence[RowLogger] = (), program: str = PROGRAM
) -> RunRecord:
    """Train in `devices` processes, and return rank 0's record. `folder` holds config.yaml.

    Each rank's output is in rank-K.log in the folder. Raises RankFailedError, with the rank named, when a rank fails or dies,
    and TrainingPausedError once all have paused as asked: every process has ended by then, as after any other exception.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it chose a free port, and keeps it
    with _processes(config, folder, devices, store.port, program) as ranks:
        return _watch(ranks, folder, loggers)


@contextlib.contextmanager
def _processes(config: RunConfig, folder: Path, devices: int, port: int, program: str) -> Iterator[list[Process]]:
    ranks: list[Process] = []
    with contextlib.nullcontext() if uses_cuda(config) else warm(MODULES) as template:
        try:
            for rank in range(devices):
                with (folder / f"rank-{rank}.log").open("wb") as log:
                    environment = _environment(config, rank, devices, port)
                    ranks.append(begin(template, program, [str(folder)], environment, log))
            yield ranks
        finally:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()


def _environment(config: RunConfig, rank: int, devices: int, port: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {
        **BRIEF_SPINNING,
        **outer,
        **import_path(),
        LAUNCHED: "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # ranks meet at the store that this process serves
        "OMP_NUM_THREADS": str(max(1, cores // devices)),
        "DS_ACCELERATOR": "cuda" if uses_cuda(config) else "cpu",
    }


def _watch(ranks: list[Process], folder: Path, loggers: Sequence[RowLogger]) -> RunRecord:
    heard: Events = queue.Queue()
    listeners = []
    for rank, process in enumerate(ranks):
        listeners.append(threading.Thread(target=_listen, args=(rank, process, heard), daemon=True))
        listeners[-1].start()
    said: dict[int, RunRecord] = {}
    deadline: float | None = None
    asked = False
    while any(process.poll() is None for process in ranks) and (deadline is None or time.monotonic() < deadline):
        if deadline is None and any(process.poll() for process in ranks):
            deadline = time.monotonic() + (PAUSE_GRACE_S if asked else GRACE_S)
        if preemption.requested() and not asked:
            asked = True
            _ask_to_pause(ranks)
        _hear(heard, said, loggers, wait=0.1)
    ended = [process.poll() for process in ranks]
    for process in ranks:
        process.kill()
    for listener in listeners:
        listener.join(timeout=GRACE_S)
    _hear(heard, said, loggers, wait=0.0)
    if 0 in said and said[0].status == "complete" and not any(ended):
        return said[0]
    if asked and set(ended) == {STOPPED}:
        raise preemption.TrainingPausedError
    raise RankFailedError(_reason(ended, said, folder), next(iter(said.values()), None))


def _ask_to_pause(ranks: list[Process]) -> None:
    for process in ranks:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            process.stdin.write(b"pause\n")
            process.stdin.flush()


def _hear(heard: Events, said: dict[int, RunRecord], loggers: Sequence[RowLogger], wait: float) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            rank, event = heard.get(timeout=wait)
            if event["event"] == "record":
                said[rank] = RunRecord.from_json(event["record"])
                continue
            for logger in loggers:
                logger.log_metrics(event["metrics"], event["step"])


def _listen(rank: int, process: Process, heard: Events) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(b"\n"):  # a killed rank's last line may be cut short
            heard.put((rank, json.loads(line)))


def _reason(ended: list[int | None], said: dict[int, RunRecord], folder: Path) -> str:
    """Describe which rank ended the run and why: one that a signal killed, else one that didn't merely lose its peers."""
    killed = [rank for rank, status in enumerate(ended) if status is not None and status < 0]
    if killed:
        return f"rank {killed[0]} died (signal {-(ended[killed[0]] or 0)}; its last words are in rank-{killed[0]}.log)"
    reasons = {rank: record.reason or "no reason given" for rank, record in said.items() if record.status == "failed"}
    for rank, status in enumerate(ended):
        if status and rank not in reasons:
            reasons[rank] = f"exit status {status}: {_last_line(folder / f'rank-{rank}.log')}"
    own = {rank: text for rank, text in reasons.items() if not any(part in text for part in BROKEN_LINE)}
    rank, text = min((own or reasons or {0: "it ended without a record"}).items())
    alike = len(reasons) == len(ended) and len(set(reasons.values())) == 1
    return text if alike else f"rank {rank}: {text}"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing logged"
