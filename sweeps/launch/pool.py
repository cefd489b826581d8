"""Worker processes of this machine: started on their share of it, heard, and ended."""

import contextlib
import json
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from core import plugins
from core.records import run_record
from core.runtime.child_process import BRIEF_SPINNING, import_path
from core.runtime.forking import Process, Template, begin, warm
from core.runtime.ranks import MODULES
from sweeps.kinds import module_of
from sweeps.launch.machine import gpus, share_of_cores, share_of_gpus
from sweeps.storage.storage import STORAGE_VARIABLE
from sweeps.studies.plan import Sweep

GRACE_S = 10.0
CORES_VARIABLE = "ABLATE_CORES"
TRAINER = "core.training.run:train"
PROGRAM = "sweeps.launch.process"


def job_of(plan: Sweep, out: Path, trainer: str) -> dict[str, Any]:
    """What a worker process reads of its job (sweeps.launch.process.queue_of). Copies the plugins that the runs need."""
    content = {"operations": module_of(plan.kind), "plan": plan.to_json(), "out": str(out), "trainer": trainer}
    needed = list(dict.fromkeys(each for config in plan.configs for each in config.plugins))
    if needed:
        folder = out / plan.study_name
        plugins.copy(needed, folder)
        content["environment"] = plugins.variables(needed, folder)
    return content


class Pool:
    """The workers of one sweep, by number from 0. Leaving its context leaves none alive."""

    def __init__(self, plan: Sweep, out: Path, storage_url: str, trainer: str) -> None:
        self._logs, self._storage_url = out / "logs", storage_url
        self._job = self._logs / f"job-{uuid.uuid4().hex}.json"
        self._content = job_of(plan, out, trainer)
        self._devices, self._trainer = plan.devices, trainer
        self._scope = contextlib.ExitStack()
        self._template: Template | None = None
        self._processes: dict[int, Process] = {}
        self._heard: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._speaking = 0

    def __enter__(self) -> "Pool":
        run_record.write_atomically(self._job, json.dumps(self._content))
        self._template = self._scope.enter_context(warm_workers(self._trainer, self._devices))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._scope:
            self.stop()
            self._job.unlink()

    def start(self, number: int, workers: int) -> None:
        """Start a worker on its share of the machine. Its output goes to logs/worker-<number + 1>.log."""
        cores = share_of_cores(number, workers)
        environment = (
            BRIEF_SPINNING
            | os.environ
            | {
                STORAGE_VARIABLE: self._storage_url,
                CORES_VARIABLE: json.dumps(cores),
                "OMP_NUM_THREADS": str(len(cores)),
                "MKL_NUM_THREADS": str(len(cores)),
                **import_path(),
                **share_of_gpus(number, self._devices),
            }
        )
        with self._log(number).open("ab") as log:
            process = begin(self._template, PROGRAM, [str(self._job)], environment, log)
        self._processes[number] = process
        self._speaking += 1
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def events(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Events of workers as they come: (number, event), and (number, None) when one has ended; until all have."""
        while self._speaking:
            number, event = self._heard.get()
            self._speaking -= event is None
            yield number, event

    def wait(self, number: int) -> int:
        """The exit status of a worker that has ended; negative = the signal that ended it."""
        process = self._processes.pop(number)
        assert process.stdin is not None
        status = process.wait()
        process.stdin.close()  # not before: a worker takes the end of its stdin for the death of its parent
        return status

    def stop(self) -> None:
        """End all workers: ask, wait, then kill. A second Ctrl-C kills at once."""
        try:
            for process in self._processes.values():
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and any(p.poll() is None for p in self._processes.values()):
                time.sleep(0.05)
        except KeyboardInterrupt:
            pass  # the kill below is what it asks for
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()

    def last_words(self, number: int) -> str:
        """The last line of a worker's log, and where the rest is."""
        path = self._log(number)
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'nothing logged'} (see {path})"

    def _log(self, number: int) -> Path:
        return self._logs / f"worker-{number + 1}.log"

    def _listen(self, number: int, process: Process) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith(b"\n"):  # a killed worker's last line may be cut short
                    self._heard.put((number, json.loads(line)))
        self._heard.put((number, None))


@contextlib.contextmanager
def warm_workers(trainer: str, devices: int = 1) -> Iterator[Template | None]:
    """Inside, workers with this trainer begin at once. None with GPUs: what a driver has begun survives no fork.

    devices: of each run; the ranks of several are forked too.
    """
    modules = (trainer.partition(":")[0], PROGRAM, *(MODULES if devices > 1 else ()))
    with warm(modules) if not gpus() else contextlib.nullcontext() as template:
        yield template
