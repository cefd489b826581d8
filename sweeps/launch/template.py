"""Workers forked from one process that has imported what they need: seconds of import once, not once a worker.

    python -P -m sweeps.launch.template CONTROL MODULE...

The template imports and forks, has no thread and touches no device. A forked worker has its own session, pipes, log,
environment and folder, and exits as any process does. (multiprocessing's forkserver shares the terminal's process group and
pipes with its parent, runs the parent's main module again in each worker, and skips the workers' exit handlers.)
"""

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from core.processes import STOPPED, add_current_folder, import_path

WARMING_S = 120.0  # for the imports; a template that takes longer is given up
REPORT_S = 2.0  # between a worker's end and the template's word of it
UNKNOWN = 255  # exit status of a worker that was killed when its template was gone too
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
WORD = struct.Struct("<cq")
BORN, LEFT, ENDED = b"b", b"l", b"e"  # with the process's id; its exit status as it says; as the system says


class TemplateGoneError(Exception):
    """There is no template that could fork."""


class Forked:
    """A worker that a template forked, with what subprocess.Popen has of one.

    status: a pipe of WORDs, written by the template and the worker; it ends when both are gone.
    """

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes], status: int) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        self._status, self._own = status, UNKNOWN
        self._handle: int | None = None
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit status; negative = the signal that ended it; None while it runs."""
        while self.returncode is None and self._hear(0.0):
            pass
        return self.returncode

    def wait(self) -> int:
        """Wait for the end. The template tells the status; one that is stopped is not waited for."""
        while self.returncode is None:
            if self._handle is not None:
                select.select([self._status, self._handle], [], [])
            if not self._hear(REPORT_S):
                self._end(self._own)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _hear(self, wait_s: float | None) -> bool:
        """Take one word; False where none came in time."""
        if not select.select([self._status], [], [], wait_s)[0]:
            return False
        word = os.read(self._status, WORD.size)
        kind, number = WORD.unpack(word) if word else (ENDED, self._own)
        if kind == LEFT:
            self._own = number
        else:
            self._end(number)
        return True

    def _end(self, status: int) -> None:
        self.returncode = status
        for handle in (self._status, self._handle):
            if handle is not None:
                os.close(handle)


class Template:
    """A process that forks workers once it has imported the modules. It ends with its parent, and so do they."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sweeps.launch.template", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # where it fails, workers start without it and say why in their logs
                pass_fds=[theirs.fileno()],
                env=os.environ | import_path() | ONE_THREAD,
                start_new_session=True,
            )

    def fork(self, program: str, argument: str, environment: Mapping[str, str], log: IO[bytes]) -> Forked:
        """Start a worker: the module's main([argument]). Raises TemplateGoneError where that can't be done."""
        order = {"program": program, "argument": argument, "environment": dict(environment), "folder": os.getcwd()}
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        status, their_status = os.pipe()
        with (
            contextlib.ExitStack() as on_failure
        ):  # without its order, a worker that is forked all the same ends at once
            ours = (
                on_failure.enter_context(os.fdopen(stdin, "wb", 0)),
                on_failure.enter_context(os.fdopen(stdout, "rb")),
            )
            on_failure.callback(os.close, status)
            try:
                try:
                    socket.send_fds(self._control, [b"fork"], [their_stdin, their_stdout, log.fileno(), their_status])
                finally:
                    for handle in (their_stdin, their_stdout, their_status):
                        os.close(handle)
                pid = self._born(status)
                ours[0].write(json.dumps(order).encode() + b"\n")
            except OSError as error:
                self.close()
                raise TemplateGoneError from error
            on_failure.pop_all()
        return Forked(pid, *ours, status)

    def _born(self, status: int) -> int:
        if not select.select([status], [], [], WARMING_S)[0]:
            raise TimeoutError
        word = os.read(status, WORD.size)
        if not word:
            raise ConnectionResetError
        return int(WORD.unpack(word)[1])

    def close(self) -> None:
        """End the template. Workers that it forked go on."""
        self._control.close()
        self._process.kill()
        self._process.wait()


_warm: dict[str, Template] = {}


@contextmanager
def warm(trainer: str) -> Iterator[Template | None]:
    """Inside, workers with this trainer can be forked; whoever asks again inside has the same template.

    None where the system can't: signals to a process that isn't a child need its handle.
    """
    if not hasattr(os, "pidfd_open"):
        yield None
    elif trainer in _warm:
        yield _warm[trainer]
    else:
        _warm[trainer] = Template([trainer.partition(":")[0], "sweeps.search.worker"])
        try:
            yield _warm[trainer]
        finally:
            _warm.pop(trainer).close()


def main(control: socket.socket, modules: Sequence[str]) -> None:
    """Import, then fork on request until the parent is gone. Returns in workers, when their work is done."""
    add_current_folder()
    for name in modules:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a module has started a thread, which no fork survives")
    gc.collect()
    gc.freeze()  # what is shared stays shared
    _work(*_serve(control))


def _serve(control: socket.socket) -> tuple[int, int, int, int]:
    """Fork on request and tell of each worker's end. Returns in workers: their stdin, stdout, stderr and status pipe."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    _tell_end(selector, key)
                    continue
                request, handles, _, _ = socket.recv_fds(control, 16, 4)
                if not request:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    for other in list(selector.get_map().values()):
                        _forget(other)
                    control.detach()
                    return tuple(handles)  # type: ignore[return-value]
                stdin, stdout, stderr, status = handles
                for handle in (stdin, stdout, stderr):
                    os.close(handle)
                _say(status, BORN, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _tell_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    pid, status = key.data
    _say(status, ENDED, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _forget(key)


def _forget(key: selectors.SelectorKey) -> None:
    for handle in (key.fd, *(key.data or ())[1:]):
        os.close(handle)


def _say(status: int, kind: bytes, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        os.write(status, WORD.pack(kind, number))


def _work(stdin: int, stdout: int, stderr: int, status: int) -> None:
    """Be a worker: the order is the first line of stdin."""
    os.setsid()
    os.set_inheritable(status, False)
    for number, handle in enumerate((stdin, stdout, stderr)):
        os.dup2(handle, number)
        os.close(handle)
    order = _order()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.argv = [order["program"], order["argument"]]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else that of all workers begins alike
    left: Any = 1
    try:
        importlib.import_module(order["program"]).main([order["argument"]])
        left = 0
    except SystemExit as leaving:
        left = leaving.code
        raise
    finally:
        _say(status, LEFT, left if isinstance(left, int) else int(left is not None))


def _order() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            os._exit(STOPPED)
        line += piece
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
