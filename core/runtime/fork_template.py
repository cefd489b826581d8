"""The template: a process that imports modules, then forks on request. core.runtime.forking starts it.

    python -P -m core.runtime.fork_template CONTROL MODULE...

It has no thread and touches no device.
"""

import contextlib
import gc
import json
import os
import selectors
import socket
import sys
from collections.abc import Sequence
from typing import Any

from core.runtime.child_process import STOPPED, import_here
from core.runtime.forking import BORN, ENDED, LEFT, WORD, adopt


def main(control: socket.socket, modules: Sequence[str]) -> None:
    """Import, then fork on request until the parent is gone. Returns in forked processes, when their work is done."""
    for name in modules:
        import_here(name)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a module has started a thread, which no fork survives")
    gc.collect()
    gc.freeze()  # what is shared stays shared
    _work(*_serve(control))


def _serve(own: socket.socket) -> tuple[int, int, int, int]:
    """Fork on request and tell of each process's end. Returns in those: their stdin, stdout, stderr and status pipe."""
    with selectors.DefaultSelector() as selector:
        selector.register(own, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if not isinstance(key.fileobj, socket.socket):
                    _tell_end(selector, key)
                    continue
                try:
                    request, handles, _, _ = socket.recv_fds(key.fileobj, 16, 4)
                except ConnectionResetError:
                    request = b""
                if not request and key.fileobj is own:
                    os._exit(0)
                if not request:  # a process that was forked has ended
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    continue
                back, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                pid = os.fork()
                if pid == 0:
                    back.close()
                    for other in list(selector.get_map().values()):
                        _forget(other)
                    adopt(theirs)
                    return tuple(handles)  # type: ignore[return-value]
                theirs.close()
                stdin, stdout, stderr, status = handles
                for handle in (stdin, stdout, stderr):
                    os.close(handle)
                _say(status, BORN, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
                selector.register(back, selectors.EVENT_READ)


def _tell_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    pid, status = key.data
    _say(status, ENDED, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _forget(key)


def _forget(key: selectors.SelectorKey) -> None:
    if isinstance(key.fileobj, socket.socket):
        key.fileobj.close()
        return
    for handle in (key.fd, key.data[1]):
        os.close(handle)


def _say(status: int, kind: bytes, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        os.write(status, WORD.pack(kind, number))


def _work(stdin: int, stdout: int, stderr: int, status: int) -> None:
    """Be a forked process: the order is the first line of stdin."""
    os.setsid()
    os.set_inheritable(status, False)
    for number, handle in enumerate((stdin, stdout, stderr)):
        os.dup2(handle, number)
        os.close(handle)
    order = _order()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.argv = [order["program"], *order["arguments"]]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else that of all processes begins alike
    left: Any = 1
    try:
        left = import_here(order["program"]).main(order["arguments"])
        sys.exit(left)
    except SystemExit as leaving:
        left = leaving.code
        raise
    finally:
        _say(status, LEFT, left if isinstance(left, int) else int(left is not None))


def _order() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)  # what comes after the line is the program's
        if not piece:
            os._exit(STOPPED)
        line += piece
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
