"""Programs that look for a way out of their limits find none; the tests show too that one left open is found."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.execution import permitted, sandbox
from core.execution.sandbox import Limits, run, start
from tests.core.execution.hostile import ATTEMPTS, CALLS, EVERYWHERE, WAYS, public_copy, run_so
from tests.core.execution.test_sandbox import LONG, PATIENCE_S, left_behind

as_root = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv")


def ways(*names: str) -> pytest.MarkDecorator:
    """In these ways; those that another user has to be for, or fewer rights, take root."""
    marks = {name: [pytest.mark.service, as_root] if command else [] for name, command in WAYS.items()}
    return pytest.mark.parametrize("way", [pytest.param(name, marks=marks[name]) for name in names])


HERE, WITHOUT, FEW_USERS, PLAIN = WAYS
Confine = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with public_copy() as folder:
        yield folder


@pytest.fixture
def confine(home: Path, way: str) -> Confine:
    def so(program: str, **options: Any) -> dict[str, Any]:
        found = run_so(way, home, program, **options)
        if "permits no namespaces" in found.get("refused", "") or "no Python" in found.get("refused", ""):
            pytest.skip(found["refused"])
        assert "refused" not in found, found
        assert found["failed"] is None
        if way in (WITHOUT, FEW_USERS):
            assert not found["namespaces"] and found["other_user"]
        if way == PLAIN:
            assert found["namespaces"] and not found["other_user"]
        return found

    return so


@ways(HERE, WITHOUT, FEW_USERS, PLAIN)
def test_calls_that_reach_out_do_not_exist(confine: Confine) -> None:
    assert json.loads(confine(ATTEMPTS)["output"]) == []
    names = {name.split(":")[0].split(" ")[0] for name in CALLS} - {
        "shmget",
        "msgget",
        "semget",
    }  # what those make stays
    assert set(json.loads(confine(ATTEMPTS, permitting=names)["output"])) >= EVERYWHERE


HOARD = """
import mmap, os, time
def keep():
    held = []
    while True:
        try:
            held += [bytearray(b"a") * 2**22, mmap.mmap(-1, 2**22)]  # one's own, and what could be shared
            held[-1][:] = held[-2]
        except (OSError, MemoryError):
            os.write(1, b"%d\\n" % sum(map(len, held)))
            del held[-2:]  # to go on with
            return held
made = 0
try:
    while made < 2:
        if os.fork() == 0:
            held = keep()
            time.sleep(1)
            os._exit(0)
        made += 1
except OSError:
    pass
held, written = keep(), 0
for folder in (".", "/tmp", "/dev/shm", "/var/tmp"):
    for place in range(64):
        try:
            with open(f"{folder}/hoard-{place}", "wb", buffering=0) as file: written += file.write(bytes(2**19))
        except OSError: pass
os.write(1, b"%d\\n" % written)
time.sleep(made > 0)  # in a namespace its end is theirs
"""


@ways(HERE, WITHOUT, PLAIN)
def test_memory_is_limited_in_sum(confine: Confine) -> None:
    limits = Limits(memory=2**27, disk=2**22, wall_s=20.0)
    held = [int(line) for line in confine(HOARD, limits=limits)["output"].split()]
    assert len(held) == 2 and limits.memory / 2 < held[0] <= limits.memory and held[1] <= limits.disk
    with_children = confine(HOARD, limits=limits, permitting=["clone", "set_robust_list"])
    assert sum(map(int, with_children["output"].split())) > 2 * limits.memory


@ways(HERE, PLAIN)
def test_no_process_is_made_by_whatever_name(confine: Confine) -> None:
    program = """
import ctypes, os, subprocess, sys
asked = [sys.executable, "-c", "print('ran')"]
def vfork():
    if ctypes.CDLL(None).vfork() < 0: raise OSError
    os._exit(0)
def shell():
    if os.system("true"): raise OSError
def spawn(): os.posix_spawn(sys.executable, asked, {})
for make in (os.fork, os.forkpty, spawn, vfork, lambda: subprocess.run(asked), shell):
    try: make(); print("got through")
    except OSError: pass
"""
    assert confine(program)["output"] == ""


@ways(HERE, PLAIN)
def test_threads_are_limited_and_their_computing_is_the_program_s(confine: Confine) -> None:
    bomb = """
import threading, time
for count in range(500):
    try: threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    except RuntimeError: break
print(count, flush=True)
"""
    assert 1 <= int(confine(bomb, limits=Limits(threads=12, wall_s=60.0))["output"]) < 12
    busy = """
import hashlib, threading, time
def work():
    while time.thread_time() < 0.7: hashlib.sha256(bytes(2**22))
for each in [threading.Thread(target=work) for _ in range(2)]: each.start()
"""
    assert confine(busy, limits=replace(LONG, cpu_s=1))["status"] == -9


@ways(HERE, WITHOUT, PLAIN)
def test_files_of_the_machine_stay_as_they_are(confine: Confine, way: str, tmp_path: Path) -> None:
    with public_copy() as public:
        there, folder = public / "anyone's", public / "open"
        there.write_text("kept")
        there.chmod(0o666)
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "victim").write_text("kept")
        program = f"""
import os
there, folder = {str(there)!r}, {str(folder)!r}
for act in (
    lambda: os.write(os.open(there, os.O_RDWR), b"gone"), lambda: open(there, "w"), lambda: os.truncate(there, 0),
    lambda: os.remove(folder + "/victim"), lambda: os.rename(folder + "/victim", folder + "/moved"),
    lambda: open(folder + "/new", "w"), lambda: os.mkdir(folder + "/made"), lambda: os.symlink("a" * 4000, folder + "/link"),
    lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR),
    lambda: open("/proc/self/oom_score_adj", "w").write("-1000"), lambda: open(f"/proc/{{os.getppid()}}/mem", "r+b"),
):
    try: act(); print("got through")
    except OSError: pass
"""
        assert confine(program)["output"] == ""
        assert there.read_text() == "kept" and os.listdir(folder) == ["victim"]
        if way == WITHOUT:
            confine(program, permitting=["openat", "mkdir"])
            assert sorted(os.listdir(folder)) == ["made", "new", "victim"] and there.read_text() == ""


@ways(HERE, WITHOUT, FEW_USERS, PLAIN)
def test_the_tests_are_not_for_whom_they_test(confine: Confine) -> None:
    program = """
import glob
for place in glob.glob("/proc/[0-9]*"):
    try: words = open(place + "/cmdline").read().split("\\0")
    except OSError: continue
    for path in [*(word for word in words if word.endswith("main.py")), place + "/mem", place + "/fd/0", place + "/environ"]:
        try:
            found = open(path, "rb")
            if path.endswith("main.py") and b"ti" + b"me" not in found.read(): continue
        except OSError: continue
        if not place.endswith(str(__import__("os").getpid())): print("got through")
"""
    assert confine(program)["output"] == ""


@ways(HERE, PLAIN)
def test_no_core_is_dumped_nor_handed_to_a_collector(confine: Confine) -> None:
    program = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_CORE), os.listdir('.'), flush=True); os.abort()"
    )
    ended = confine(program)
    assert ended["output"] == "(1, 1) []\n" and ended["status"] < 0


def test_a_program_is_the_first_to_go_where_memory_is_short() -> None:
    with start("import time; time.sleep(600)", limits=LONG, arguments=["a-marker-of-this-test"]):
        deadline, scores = time.monotonic() + PATIENCE_S, []
        while 1000 not in scores and time.monotonic() < deadline:
            scores = [
                int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in left_behind("a-marker-of-this-test")
            ]
        assert sorted(scores)[-1] == 1000


def test_without_a_filter_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permitted, "LIBRARY", "libnone.so.2")
    confinement = sandbox.confinement.__wrapped__
    with pytest.raises(
        sandbox.UserError, match=r"can't be run confined here .*libnone.so.2 isn't there: install libseccomp"
    ):
        confinement()
    assert run("print(1)").output == b""
    monkeypatch.setattr(permitted, "MACHINES", ("vax",))
    with pytest.raises(sandbox.UserError, match="can't be confined on .*, only on vax"):
        confinement()
