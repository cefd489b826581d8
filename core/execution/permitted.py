"""The calls to the kernel that a confined program may make; every other is answered as if the kernel didn't have it.

A list of what is permitted rather than of what is refused: what the next kernel adds is refused too. It has what Python needs
to compute, to read, and to write what it may. It has no call that makes a process, a socket, a pipe, memory or data that no
limit of the process counts (SysV and POSIX shared memory, memfd, message queues, keys, record locks), nor one that reaches
another process, changes a limit, or makes namespaces. So limits of the process are limits of all that a program uses.
"""

import os
from collections.abc import Iterable

LIBRARY = "libseccomp.so.2"
MACHINES = ("x86_64", "aarch64")  # where the arguments below have these places

Condition = tuple[int, int, int]  # place of an argument, mask, value: the masked argument must be the value
Rule = tuple[str, list[Condition]]

_ALWAYS = """
    read readv pread64 preadv write writev pwrite64 pwritev lseek close dup dup2 dup3 poll ppoll select pselect6
    stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getdents getdents64
    listxattr getcwd chdir fchdir umask
    brk mmap munmap mprotect mremap madvise
    futex set_robust_list get_robust_list set_tid_address rseq arch_prctl sched_yield sched_getaffinity
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause
    alarm setitimer getitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage
    getpid getppid gettid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups getpriority
    uname sysinfo getcpu getrandom execve exit exit_group
"""
# Where the folder lies in a file system of its own, which limits what is in it; elsewhere nothing can be made or changed.
_WRITING = """
    open openat creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 truncate ftruncate fsync fdatasync
    chmod fchmod fchmodat utimensat
"""

ALL = 2**64 - 1
THREAD, NEW_SPACES = 0x00010000, 0x7E020000  # linux/sched.h: CLONE_THREAD, every CLONE_NEW*
MAKING = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 4, 1030)  # fcntl: duplicate and flags; no locks, owners, leases or sizes of pipes
DEVICE_COMMANDS = (0x5401, 0x5413, 0x5450, 0x5451)  # ioctl: is it a terminal, how wide, closed on exec or not


def rules(writing: bool) -> list[Rule]:
    """The calls, each with conditions that must all hold; several rules of one call are alternatives."""
    found: list[Rule] = [(name, []) for name in (_ALWAYS + _WRITING * writing).split()]
    found += [("clone", [(0, THREAD | NEW_SPACES, THREAD)])]  # clone3, which a filter can't look into, gives way to it
    found += [("prlimit64", [(2, ALL, 0)])]  # to read limits
    found += _one_of("fcntl", DESCRIPTOR_COMMANDS) + _one_of("ioctl", DEVICE_COMMANDS)
    if not writing:
        found += [("open", [(1, MAKING, 0)]), ("openat", [(2, MAKING, 0)])]
    return found


def _one_of(name: str, commands: Iterable[int]) -> list[Rule]:
    return [(name, [(1, ALL, command)]) for command in commands]
