"""Hostile programs come to nothing, and leave nothing behind."""

import os
import secrets
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.execution import sandbox
from core.execution.sandbox import Ended, Limits, run, start
from tests.forked import wait_until

SHORT = Limits(wall_s=1.0)  # for programs that don't end
LONG = Limits(wall_s=120.0)  # never reached, on a busy machine either
PATIENCE_S = 100.0  # a busy machine's


def left_behind(marker: str) -> list[str]:
    """Processes whose command line has the marker: programs get it as an argument."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in place.read_bytes():
                found.append(place.parent.name)
        except OSError:
            continue  # it ended meanwhile
    return found


def ran(program: str, limits: Limits = LONG, **options) -> sandbox.Ran:
    marker = secrets.token_hex(8)
    done = run(program, limits=limits, arguments=[marker], **options)
    assert left_behind(marker) == []
    return done


def test_a_program_runs_and_says_so() -> None:
    done = ran(
        "import sys, math; print(math.factorial(5)); sys.stdout.flush(); print('oh', file=sys.stderr); sys.exit(7)"
    )
    assert done.status == 7 and done.output == b"120\noh\n" and not done.timed_out and not done.flooded


def test_what_python_computes_with_is_there(confined: Ended) -> None:
    if not confined.namespaces:
        pytest.skip("this kernel permits no namespaces: nothing is written")
    program = """
import datetime, decimal, hashlib, pathlib, random, shutil, signal, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder, "a")
    place.write_text(str(decimal.Decimal(1) / 3) + str(datetime.datetime.now()) + time.strftime("%c") + str(random.random()))
    shutil.copy2(place, folder + "/b")
    place.rename(folder + "/c")
with ThreadPoolExecutor(2) as pool: print(list(pool.map(abs, [-1, 2])))
signal.alarm(60)
time.sleep(0.01)
"""
    done = ran(program)
    assert done.output == b"[1, 2]\n" and done.status == 0


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "input_ = open(0).read; input_(); import signal; signal.pause()",
    ],
)
def test_an_endless_one_is_ended(program: str) -> None:
    done = ran("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + program, SHORT)
    assert done.timed_out and done.status == -signal.SIGKILL


def test_one_that_computes_too_long_is_ended() -> None:
    done = ran("while True: pass", replace(LONG, cpu_s=1))
    assert done.status == -signal.SIGKILL and not done.timed_out


def test_memory_files_and_output_are_limited(confined: Ended) -> None:
    assert b"MemoryError" in ran("x = bytearray(2**33)").output
    large = ran("open('a', 'wb').write(b'a' * 2**22)").output
    assert (b"File too large" if confined.namespaces else b"Function not implemented") in large
    flood = ran("while True: print('a' * 10_000)", output=10_000)
    assert flood.flooded and len(flood.output) == 10_000 and not flood.timed_out
    many = "for n in range(100): open(f'{n}', 'wb').write(b'a' * 10**6)"
    if confined.namespaces:
        assert b"No space left on device" in ran(many).output
    assert b"Too many open files" in ran("import os\nkept = [os.dup(1) for _ in range(100)]").output


def test_nothing_of_the_environment_is_seen(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "s3cr3t")
    done = ran("import os; print(sorted(os.environ), os.listdir('.'), os.path.exists('/proc/self/environ'))")
    assert done.status == 0 and b"s3cr3t" not in done.output and b"TOKEN" not in done.output
    assert b" [] " in done.output  # an empty folder


def test_the_machine_is_not_reached(confined: Ended, tmp_path) -> None:
    if not confined.namespaces:
        pytest.skip("this kernel permits no namespaces")
    (tmp_path / "secret").write_text("s3cr3t")
    assert b"FileNotFoundError" in ran(f"print(open({str(tmp_path / 'secret')!r}).read())").output
    assert b"FileNotFoundError" in ran("print(open('/etc/passwd').read())").output
    home = os.path.realpath(os.__file__)
    changed = ran(f"open({home!r}, 'a')")
    assert changed.status == 1 and b"Error: [Errno" in changed.output  # another user's, on a read-only file system
    for address in ("('127.0.0.1', 22)", "('1.1.1.1', 53)"):
        done = ran(f"import socket; socket.create_connection({address}, timeout=5); print('got', 'through')")
        assert done.status == 1 and b"got through" not in done.output and not done.timed_out


def test_other_processes_are_not_ended() -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        kill = f"""
import os, signal
for pid in ({bystander.pid}, os.getppid(), {os.getpid()}, -{os.getpgid(0)}):
    try: os.kill(pid, signal.SIGKILL) if pid not in (0, os.getpid(), 1) else None
    except OSError as error: print(type(error).__name__)
"""
        done = ran(kill)
        assert bystander.poll() is None and done.status == 0 and b"Error" in done.output
    finally:
        bystander.kill()
        bystander.wait()


def test_it_cannot_say_how_it_ended() -> None:
    forged = """{"status": 0, "namespaces": false}\\n"""
    done = ran(
        f"import os, sys\nfor n in range(64):\n  try: os.write(n, b'{forged}')\n  except OSError: pass\nsys.exit(3)"
    )
    assert done.status == 3 and done.output


def test_leaving_the_block_ends_it() -> None:
    marker = secrets.token_hex(8)
    with start("import time; time.sleep(600)", limits=LONG, arguments=[marker]) as program:
        deadline = time.monotonic() + PATIENCE_S
        while len(left_behind(marker)) < 2 and time.monotonic() < deadline:  # the script outside it, and itself
            time.sleep(0.02)
        assert left_behind(marker)
    assert left_behind(marker) == [] and program.end() == Ended(None)


def test_it_ends_with_whoever_started_it() -> None:
    marker = secrets.token_hex(8)
    starter = f"from core.execution.sandbox import run; run('import time; time.sleep(600)', arguments=['{marker}'])"
    process = subprocess.Popen([os.sys.executable, "-c", starter])
    wait_until(lambda: [pid for pid in left_behind(marker) if pid != str(process.pid)], PATIENCE_S)
    process.kill()
    process.wait()
    wait_until(lambda: not left_behind(marker), PATIENCE_S)


def test_where_nothing_can_be_confined_nothing_is_run(monkeypatch) -> None:
    confinement = sandbox.confinement.__wrapped__
    monkeypatch.setattr(sandbox, "run", lambda program: sandbox.Ran(0, output=b"42\n"))
    with pytest.raises(sandbox.UserError, match="programs can't be confined here"):
        confinement()
    monkeypatch.setattr(sandbox, "run", lambda program: sandbox.Ran(125, namespaces=True, failed="OSError: mount"))
    with pytest.raises(sandbox.UserError, match=r"can't be run confined here \(OSError: mount\)"):
        confinement()
