"""Processes forked from a template that has imported what they need: seconds of import once, not once a process.

A forked process has its own session, pipes, log, environment and folder, exits as any process does, and can have the template
fork others. (multiprocessing's forkserver shares its parent's process group and pipes, runs the parent's main module again
and skips exit handlers.)
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from core.runtime.child_process import BRIEF_SPINNING, import_path, module_command

WARMING_S, FORKING_S = 120.0, 20.0  # for the imports, and for a process after them; who takes longer is given up
REPORT_S = 2.0  # between a process's end and the template's word of it
UNKNOWN = 255  # exit status of a process that was killed when its template was gone too
# Libraries that start threads at their import start none; DeepSpeed reads which device it is for when it is imported.
BEFORE_IMPORT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
WORD = struct.Struct("<cq")
BORN, LEFT, ENDED = b"b", b"l", b"e"  # with the process's id; its exit status as it says; as the system says


class TemplateGoneError(Exception):
    """There is no template that could fork."""


class Forked:
    """A process that a template forked, with what subprocess.Popen has of one.

    status: a pipe of WORDs, written by the template and the process; it ends when both are gone.
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
        if (
            not word and self._handle is not None
        ):  # the template is gone; the process is ending, its locks maybe still held
            select.select([self._handle], [], [])
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
    """A process that forks others once it has imported the modules. It ends with its parent, and so do they."""

    def __init__(self, modules: Sequence[str] = (), control: socket.socket | None = None) -> None:
        """control: in a process that a template forked, the way back to it."""
        self._modules, self._control = modules, control
        self._process: subprocess.Popen[bytes] | None = None
        self._has_forked = False

    def start(self) -> None:
        """Begin to import."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                module_command("core.runtime.fork_template", str(theirs.fileno()), *self._modules),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # where it fails, processes start without it and say why in their logs
                pass_fds=[theirs.fileno()],
                env=BRIEF_SPINNING | os.environ | import_path() | BEFORE_IMPORT,
                start_new_session=True,
            )

    def fork(self, program: str, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Forked:
        """Start a process: the module's main(arguments). Raises TemplateGoneError where that can't be done."""
        if self._control is None:
            self.start()
        assert self._control is not None
        order = {"program": program, "arguments": arguments, "environment": dict(environment), "folder": os.getcwd()}
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        status, their_status = os.pipe()
        with contextlib.ExitStack() as on_failure:  # a process that is forked all the same ends without its order
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
        if not select.select([status], [], [], FORKING_S if self._has_forked else WARMING_S)[0]:
            raise TimeoutError
        word = os.read(status, WORD.size)
        if not word:
            raise ConnectionResetError
        self._has_forked = True
        return int(WORD.unpack(word)[1])

    def close(self) -> None:
        """End the template, or, where it forked this process, the way to it. Processes that it forked go on."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


Process = subprocess.Popen[bytes] | Forked
_warm: list[Template] = []  # the one that is open


def adopt(control: socket.socket) -> None:
    """In a forked process: let it have its template fork others."""
    _warm.append(Template(control=control))


@contextmanager
def warm(modules: Sequence[str], at_once: bool = True) -> Iterator[Template | None]:
    """Inside, processes with these modules can be forked; whoever asks again inside has the same template.

    at_once: it imports them now, not when the first one is forked. None where the system can't: signals to a process that
    isn't a child need its handle.
    """
    if not hasattr(os, "pidfd_open"):
        yield None
    elif _warm:
        yield _warm[0]
    else:
        template = Template(modules)
        _warm.append(template)
        try:
            if at_once:
                template.start()
            yield template
        finally:
            _warm.clear()
            template.close()


def begin(
    template: Template | None, program: str, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
) -> Process:
    """Start a module's main(arguments) in a session of its own: forked where there is a template that can."""
    if template is not None:
        with contextlib.suppress(TemplateGoneError):
            return template.fork(program, arguments, environment, log)
    return subprocess.Popen(
        module_command(program, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which decides
    )
