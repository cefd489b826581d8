"""What runs inside Ray: an actor that keeps one worker process, and a look at a folder from another node.

Ray sends this module's code to its nodes, whose interpreter may lack our packages until their path is set: it imports the
standard library and ray alone.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

POLL_S = 2.0
GRACE_S = 25.0  # after SIGTERM; a task takes up to 20 s for a checkpoint
MOST_FAILED_STARTS = 3
DONE, REFUSED = 0, 2  # exit statuses of sweeps.launch.task after which another process would do no better


class RayWorker:
    """One task of a submission: it has a process work through the queue, and replaces it when it is killed.

    All begins in `__init__`, which Ray calls again, on any node with room, when this actor is lost: so it needs nobody who
    calls it. It ends itself when its process has ended well, and once `cancelled` is there.

    settings: "folder", "number", "root" (of our packages); "cwd" and "module" of the process; names of the files "task",
    "cancelled" and "environment" (the user's variables for the process); "variables" of ours, and "restarts_variable".
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import ray

        self._settings, self._folder = settings, Path(settings["folder"])
        self._task, self._cancelled = self._folder / settings["task"], self._folder / settings["cancelled"]
        self._me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        import ray

        try:
            if not self._is_told_to_end():
                restarts = self._note_start()
                self._keep_process(restarts)
            self._task.unlink(missing_ok=True)
        finally:
            ray.kill(self._me)

    def _is_told_to_end(self) -> bool:
        return self._cancelled.exists() or not self._folder.exists()

    def _note_start(self) -> int:
        """Write in the task's file that it runs here. Returns how often it was started before."""
        restarts: int = json.loads(self._task.read_text(encoding="utf-8"))["restarts"] + 1
        partial = self._task.with_suffix(f".{os.getpid()}.partial")
        said = {"state": "RUNNING", "restarts": restarts, "node": os.uname().nodename}
        partial.write_text(json.dumps(said), encoding="utf-8")
        partial.replace(self._task)
        return restarts

    def _keep_process(self, restarts: int) -> None:
        """Have a process work until one ends well; give up after several that were killed before they claimed anything."""
        failures = 0
        with tempfile.TemporaryDirectory() as place:
            claimed = Path(place) / "claimed"
            while failures < MOST_FAILED_STARTS:
                claimed.write_bytes(b"")
                status = self._run_process(restarts, claimed)
                if status in (DONE, REFUSED) or self._is_told_to_end():
                    return
                failures = 0 if claimed.stat().st_size else failures + 1

    def _run_process(self, restarts: int, claimed: Path) -> int:
        """Run a process to its end, or to this task's. It ends with this one, as its stdin then closes."""
        own = self._settings
        given = json.loads((self._folder / own["environment"]).read_text(encoding="utf-8"))
        python_path = os.pathsep.join(filter(None, (own["root"], os.environ.get("PYTHONPATH"))))
        environment = {
            **os.environ,
            **given,
            "PYTHONPATH": python_path,
            "ABLATE_CLAIMED": str(claimed),
            **own["variables"],
            own["restarts_variable"]: str(restarts),
        }
        command = [sys.executable, "-P", "-m", own["module"], str(self._folder)]
        cwd = own["cwd"] if os.path.isdir(own["cwd"]) else None
        with (self._folder / f"log-{own['number']}.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=cwd, start_new_session=True
            )
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                if self._is_told_to_end():
                    return _end(process)
                with contextlib.suppress(OSError):  # a file server that doesn't answer for a moment
                    os.utime(self._task)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def look(locked_file: str) -> str:
    """What is wrong, on this node, with a file that another node holds the lock of; "" = nothing."""
    try:
        handle = os.open(locked_file, os.O_RDWR)
    except OSError as error:
        return f"doesn't see it ({error.strerror})"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    finally:
        os.close(handle)
    return "doesn't see its locks (flock)"
