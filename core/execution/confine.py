"""A script that takes rights away and then becomes a program that isn't trusted. It needs nothing but the standard library.

Its one argument is JSON (core.execution.sandbox.start writes it). Where the kernel permits, the program gets namespaces of
its own: it sees no process but its children, no network, and of the file system the interpreter, read-only, and an empty
folder of limited size in memory. Started by root it is another user, whatever else there is. Limits hold in either case, and
of the kernel's calls it has those alone that core.execution.permitted lists, which make no second process. This process stays
outside and ends the program when the time is up, when it is told to, and when whoever started it is gone.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
from typing import Any

# linux/sched.h, sys/mount.h, sys/prctl.h
NEW_USER, NEW_SPACES = 0x10000000, 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # NS PID NET IPC UTS
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
KEPT = {
    2: 2,
    4: 4,
    8: 8,
    1024: 1024,
    2048: 2048,
    4096: 1 << 21,
}  # statvfs's flags, and mount's: a remount must keep them
DETACH, DEATH_SIGNAL, NO_NEW_RIGHTS = 2, 1, 38
NOBODY = 65534
PERMIT, MASKED_EQUAL, OTHER_ABI = (
    0x7FFF0000,
    7,
    2,
)  # seccomp.h: SCMP_ACT_ALLOW, SCMP_CMP_MASKED_EQ, SCMP_FLTATR_ACT_BADARCH
NO_SUCH_CALL = 0x00050000 | errno.ENOSYS  # SCMP_ACT_ERRNO; libraries then try an older call
libc = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any]) -> None:
    """Start the program, wait for its end or end it, and write what became of it to the descriptor `report`."""
    os.set_inheritable(spec["report"], False)  # what is said there must be this script's
    uid, gid = os.getuid(), os.getgid()
    spaces = _unshare(uid, gid)
    libc.prctl(DEATH_SIGNAL, signal.SIGTERM)  # now: a change of rights forgets it
    user = spec["user"] if uid == 0 else None
    child = os.fork()
    if child == 0:
        _become(spec, spaces, user)
    ended = {"timed_out": False}

    def end(number: int, frame: Any) -> None:
        ended["timed_out"] = ended["timed_out"] or number == signal.SIGALRM
        _kill(child)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, spec["wall_s"])
    if os.getppid() != spec["parent"]:  # gone before its death could be told
        _kill(child)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = ended | {"status": status, "namespaces": spaces, "other_user": user is not None}
    _report(spec, found)


def _report(spec: dict[str, Any], found: dict[str, Any]) -> None:
    os.write(spec["report"], json.dumps(found).encode() + b"\n")


def _unshare(uid: int, gid: int) -> bool:
    """Leave the namespaces of the system; whether that was permitted."""
    if uid == 0:
        return libc.unshare(NEW_SPACES) == 0
    if libc.unshare(NEW_SPACES | NEW_USER) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def _become(spec: dict[str, Any], spaces: bool, user: int | None) -> None:
    try:
        program, limits = spec["program"], spec["limits"]
        permitted = _Filter(spec["library"], spec["calls"]["writing" if spaces else "reading"])
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where all programs together are too much for the machine, one of them is ended
        if spaces:
            _new_root(spec)
            program = "/main.py"
        else:
            os.chdir(spec["folder"])
            limits = limits | {"RLIMIT_FSIZE": 0}  # files that anyone may write are the machine's
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if user is not None:
            _change_user(user)
        libc.prctl(NO_NEW_RIGHTS, 1, 0, 0, 0)
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
        permitted.load()
        os.execve(spec["python"], [spec["python"], "-I", "-S", "-B", program, *spec["arguments"]], {})
    except BaseException as error:
        _report(spec, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(125)


class _Condition(ctypes.Structure):
    """seccomp.h: struct scmp_arg_cmp."""

    _fields_ = (
        ("place", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _Filter:
    """The kernel's calls that are permitted, as [name, [[place of an argument, mask, value], ...]] each.

    libseccomp knows the calls' numbers; what it has no name for isn't permitted. Once loaded no program can take it off.
    """

    def __init__(self, library: str, calls: list[Any]) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise OSError(f"{library} isn't there: install libseccomp, on Debian the package libseccomp2") from None
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(NO_SUCH_CALL))
        self._check(self._library.seccomp_attr_set(self._filter, OTHER_ABI, NO_SUCH_CALL))
        for name, conditions in calls:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:  # another machine's, or of a newer kernel than the library
                continue
            compared = (_Condition * len(conditions))(
                *(_Condition(place, MASKED_EQUAL, mask, value) for place, mask, value in conditions)
            )
            self._check(
                self._library.seccomp_rule_add_array(self._filter, PERMIT, number, len(conditions), compared), name
            )

    def load(self) -> None:
        self._check(self._library.seccomp_load(self._filter))

    def _check(self, result: int, what: str = "a filter of calls") -> None:
        if result != 0:
            raise OSError(-result, f"seccomp: {what}: {os.strerror(-result)}")


def _new_root(spec: dict[str, Any]) -> None:
    """A file system in memory with the interpreter in it, and nothing else of the machine's."""
    root = spec["root"]
    with open(spec["program"], "rb") as file:
        program = file.read()
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, f"size={spec['disk']},nr_inodes=4096,mode=755")
    for path in spec["readable"]:
        place = root + path
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), place)
            continue
        if os.path.isdir(path):
            os.makedirs(place, mode=0o755, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT, 0o644))
        _mount(path, place, None, BIND | RECURSIVE)
        found = os.statvfs(place).f_flag
        kept = sum(flag for seen, flag in KEPT.items() if found & seen)
        if path != "/dev/null":
            _mount(None, place, None, BIND | REMOUNT | READ_ONLY | NO_SUID | kept)
    with open(root + "/main.py", "wb") as file:
        file.write(program)
    os.chmod(root + "/main.py", 0o444)
    os.mkdir(root + "/work")
    os.chmod(root + "/work", 0o777)
    os.chdir(root)
    _done(libc.pivot_root(b".", b"."), "pivot_root")
    _done(libc.umount2(b".", DETACH), "umount")
    os.chdir("/work")


def _change_user(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    values = [None if value is None else value.encode() for value in (source, target, kind, data)]
    _done(libc.mount(values[0], values[1], values[2], ctypes.c_ulong(flags), values[3]), f"mount {target}")


def _done(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
