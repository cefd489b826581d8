"""Hostile programs, and the ways to confine them: as this machine does it, without namespaces, by a plain user."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import core
from core.execution.sandbox import Limits

# name: number on x86_64, number on aarch64 (asm/unistd_64.h, asm-generic/unistd.h), and harmless arguments
CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    # processes, namespaces, file systems
    "clone": (56, 220, (17,)),
    "clone3": (435, 435, ()),
    "unshare": (272, 97, (0x10000000,)),
    "setns": (308, 268, (-1,)),
    "setsid": (112, 157, ()),
    "mount": (165, 40, ()),
    "umount2": (166, 39, ()),
    "pivot_root": (155, 41, ()),
    "chroot": (161, 51, ()),
    "fsopen": (430, 430, ()),
    "open_tree": (428, 428, (-1,)),
    "openat2": (437, 437, (-1,)),
    # memory and data that no limit of a process counts
    "shmget": (29, 194, (0, 2**20, 0o1600)),
    "shmat": (30, 196, (-1,)),
    "msgget": (68, 186, (0, 0o1600)),
    "semget": (64, 190, (0, 1, 0o1600)),
    "mq_open": (240, 180, ()),
    "memfd_create": (319, 279, ()),
    "memfd_secret": (447, 447, (0,)),
    "add_key": (248, 217, ()),
    "request_key": (249, 218, ()),
    "keyctl": (250, 219, (0, -1, 0)),
    "pipe2": (293, 59, ()),
    "vmsplice": (278, 75, (-1,)),
    "splice": (275, 76, (-1,)),
    "tee": (276, 77, (-1,)),
    "fcntl: lock": (72, 25, (1, 6)),
    "fcntl: lock of an open file": (72, 25, (1, 37)),
    "fcntl: lease": (72, 25, (1, 1024)),
    "fcntl: size of a pipe": (72, 25, (1, 1031, 2**20)),
    "flock": (73, 32, (-1,)),
    "fallocate": (285, 47, (-1,)),
    "setxattr": (188, 5, ()),
    "mlock": (149, 228, ()),
    "remap_file_pages": (216, 234, ()),
    "epoll_create1": (291, 20, (0,)),
    "eventfd2": (290, 19, (0,)),
    "timerfd_create": (283, 85, (0,)),
    "timer_create": (222, 107, (-1,)),
    "inotify_init1": (294, 26, (0,)),
    "fanotify_init": (300, 262, (0,)),
    "io_uring_setup": (425, 425, (1,)),
    "io_setup": (206, 0, (0,)),
    "userfaultfd": (323, 282, (1,)),
    "perf_event_open": (298, 241, ()),
    "bpf": (321, 280, (0,)),
    # networks, which have one call with the family as its argument: UNIX, IPv4, NETLINK, PACKET, ALG, VSOCK
    **{
        f"socket {family}": (41, 198, (family, kind))
        for family, kind in ((1, 1), (2, 1), (16, 3), (17, 3), (38, 5), (40, 1))
    },
    "socketpair": (53, 199, (1, 1)),
    # other processes, and how they are served
    "ptrace": (101, 117, (16, 1)),
    "process_vm_readv": (310, 270, (1,)),
    "process_vm_writev": (311, 271, (1,)),
    "pidfd_open": (434, 434, (1,)),
    "pidfd_getfd": (438, 438, (-1,)),
    "kcmp": (312, 272, (1, 1)),
    "kill": (62, 129, (1, 0)),
    "tkill": (200, 130, (1, 0)),
    "tgkill": (234, 131, (1, 1, 0)),
    "rt_sigqueueinfo": (129, 138, (1, 0)),
    "fcntl: whom signals go to": (72, 25, (1, 8, 1)),
    "ioctl: type into a terminal": (16, 29, (0, 0x5412)),
    "setpriority": (141, 140, (0, 0, 1)),
    "sched_setaffinity": (203, 122, (0, 0, 0)),
    "sched_setscheduler": (144, 119, (-1,)),
    "ioprio_set": (251, 30, (1, 0, 0)),
    # what holds the program itself
    "prctl": (157, 167, (1, 0)),
    "seccomp": (317, 277, (1, 0, 0)),
    "setrlimit": (160, 164, (4, 0)),
    "prlimit64": (302, 261, (0, 4, 1)),
    "setresuid": (117, 147, (-1, -1, -1)),
    "setgroups": (116, 159, (0, 0)),
    "capset": (126, 91, ()),
    "personality": (135, 92, (-1,)),
    # the machine
    "name_to_handle_at": (303, 264, (-1,)),
    "open_by_handle_at": (304, 265, (-1,)),
    "init_module": (175, 105, ()),
    "syslog": (103, 116, (10,)),
    "sethostname": (170, 161, (0, -1)),
    "symlinkat": (266, 36, (0, -1, 0)),
    "linkat": (265, 37, (-1, 0, -1, 0)),
    "mknodat": (259, 33, (-1, 0, 0)),
}
# What any kernel has: where these aren't refused, the attempts show it.
EVERYWHERE = {
    "clone",
    "unshare",
    "mount",
    "memfd_create",
    "pipe2",
    "splice",
    "socket 1",
    "socket 2",
    "socketpair",
    "kill",
}
EVERYWHERE |= {"prctl", "ptrace", "prlimit64", "setpriority", "fcntl: lock", "fcntl: size of a pipe"}
EVERYWHERE |= {"ioctl: type into a terminal"}
ATTEMPTS = (
    f"""
calls = {CALLS!r}"""
    + """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
place = ("x86_64", "aarch64").index(os.uname().machine)
through = []
for name, call in calls.items():
    arguments = [ctypes.c_long(each) for each in (*call[2], *[0] * (6 - len(call[2])))]
    ctypes.set_errno(0)
    result = libc.syscall(call[place], *arguments)
    if name == "clone" and result == 0:
        os._exit(0)
    if result != -1 or ctypes.get_errno() != errno.ENOSYS:
        through.append(name)
print(json.dumps(through))
"""
)

# A user namespace with 65,536 users, as containers have that are started by a plain user.
CONTAINER = """
import ctypes, os, sys
ready, child = os.pipe(), os.fork()
if child == 0:
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{os.getppid()}/{name}", "w") as file: file.write("0 0 65536")
    os._exit(0)
ctypes.CDLL(None).unshare(0x10000000)
os.write(ready[1], b"x")
os.waitpid(child, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
WAYS: dict[str, list[str]] = {
    "as here": [],
    "without namespaces": ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"],
    "in a container of few users": [
        *(sys.executable, "-I", "-c", CONTAINER),
        *("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"),
    ],
    "by a plain user": ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
}
RUNNER = """
import contextlib, json, sys
from core.execution import permitted, sandbox
# One that looks around finds another program beside it; none is only to see whether anything is run at all.
program, limits, more = json.loads(sys.argv[1])
listed = permitted.rules
permitted.rules = lambda writing: [*listed(writing), *((name, []) for name in more)]
try:
    if not program:
        sandbox.confinement()
    with sandbox.start("import time; time.sleep(600)") if "/proc/" in program else contextlib.nullcontext():
        ran = sandbox.run(program, limits=sandbox.Limits(**limits))
    said = {"output": ran.output.decode(), "status": ran.status, "failed": ran.failed}
    print(json.dumps(said | {"namespaces": ran.namespaces, "other_user": ran.other_user}))
except sandbox.UserError as error:
    print(json.dumps({"refused": str(error)}))
"""


@contextmanager
def public_copy() -> Iterator[Path]:
    """The packages that run programs, where every user may read them."""
    with tempfile.TemporaryDirectory() as folder:
        home, package = Path(folder), Path(core.__file__).parent
        home.chmod(0o755)
        shutil.copytree(package / "execution", home / "core" / "execution")
        for name in ("__init__.py", "errors.py"):
            shutil.copy(package / name, home / "core" / name)
        yield home


@lru_cache
def python_for(way: str, home: Path) -> tuple[str | None, str]:
    """An interpreter that runs programs so, or why there is none; the one of these tests may be closed to other users."""
    reason = "no Python that this user may start"
    for python in (os.path.realpath(sys._base_executable), "/usr/bin/python3"):  # type: ignore[attr-defined]
        done = _run(way, python, home, ["", {}, []])
        if done.returncode != 0:
            continue
        found = json.loads(done.stdout)
        if "refused" not in found:
            return python, ""
        reason = found["refused"]
    return None, reason


def run_so(
    way: str, home: Path, program: str, limits: Limits | None = None, permitting: Iterable[str] = ()
) -> dict[str, Any]:
    """Run a program confined in one of the ways. permitting: calls that the filter lets through besides, to see that it is
    the filter that refuses them."""
    python, reason = python_for(way, home)
    if python is None:
        return {"refused": reason}
    done = _run(way, python, home, [program, asdict(limits or Limits(wall_s=120.0)), sorted(permitting)])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(way: str, python: str, home: Path, asked: list[Any]) -> subprocess.CompletedProcess[str]:
    command = [*WAYS[way], python, "-B", "-c", RUNNER, json.dumps(asked)]
    return subprocess.run(command, env={"PYTHONPATH": str(home)}, cwd="/", capture_output=True, text=True)
