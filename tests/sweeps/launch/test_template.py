"""Workers forked from a template: what each has of its own, and what holds when one of the processes is killed or stopped."""

import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from core.runtime import forking
from core.runtime.forking import UNKNOWN, Forked, Template, TemplateGoneError, warm
from sweeps.launch.local import run
from sweeps.launch.machine import gpus
from sweeps.runs.folders import recorded, run_folder

pytestmark = pytest.mark.skipif(bool(gpus()) or not hasattr(os, "pidfd_open"), reason="workers aren't forked here")

PROGRAM = """
import json, os, random, signal, sys, time
import numpy
from core.runtime.child_process import leave_with_parent, take_events_pipe

def main(arguments):
    tell = take_events_pipe()
    leave_with_parent(0)
    print("to the log")
    tell(
        pid=os.getpid(), session=os.getsid(0), folder=os.getcwd(), argument=arguments[0], secret=os.environ.get("SECRET"),
        outer=os.environ.get("OUTER"), random=random.random(), numpy=numpy.random.random(), core=sys.modules["core"].__file__,
        open=sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n != "0" and not _gone(n)),
    )
    if arguments[0].isdigit():
        sys.exit(int(arguments[0]))
    if arguments[0] == "fails":
        raise ValueError("as asked")
    if arguments[0] == "waits":
        time.sleep(60)

def _gone(number):
    return not os.path.islink(f"/proc/self/fd/{number}")
"""


@pytest.fixture(autouse=True)
def none_is_open(monkeypatch):
    """The template that tests share is none to be killed."""
    monkeypatch.setattr(forking, "_warm", [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a program of the user's, and a package called core that is none of ours."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTER", "of the parent")
    return tmp_path


@pytest.fixture
def made(folder):
    made = Template(["program"])
    yield made
    made.close()


@pytest.fixture
def start(made, folder):
    started = []

    def start(argument) -> Forked:
        with (folder / "log").open("ab") as log:
            started.append(made.fork("program", [argument], {"SECRET": "s", "PATH": os.environ["PATH"]}, log))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def said(process):
    return json.loads(process.stdout.readline())


def test_a_worker_is_a_process_of_its_own(start, folder, made):
    first, second = start("waits"), start("waits")
    one, other = said(first), said(second)
    assert one["pid"] == one["session"] == first.pid != other["pid"]
    assert one["argument"] == "waits" and one["folder"] == str(folder)
    assert one["secret"] == "s" and one["outer"] is None
    assert one["core"] == str(Path(forking.__file__).parents[2] / "core" / "__init__.py")
    assert one["random"] != other["random"] and one["numpy"] != other["numpy"]
    assert "to the log\n" in (folder / "log").read_text()
    assert not set(pipes(one)) & set(pipes(other))  # else nobody would hear the end of either
    command = " ".join(psutil.Process(made._process.pid).cmdline())
    assert "SECRET" not in command and psutil.Process(made._process.pid).num_threads() == 1


def pipes(told):
    return [name for name in told["open"] if name.startswith(("pipe:", "socket:"))]


@pytest.mark.parametrize(("argument", "status"), [("ends", 0), ("7", 7), ("fails", 1)])
@pytest.mark.parametrize("template_is", ["alive", "killed", "stopped"])
def test_exit_statuses_are_those_of_a_process(start, made, argument, status, template_is, folder):
    start("ends").wait()
    process = start(argument)
    if template_is == "killed":
        made._process.kill()
    elif template_is == "stopped":
        made._process.send_signal(signal.SIGSTOP)
    assert process.wait() == process.poll() == status
    assert ("ValueError: as asked" in (folder / "log").read_text()) == (argument == "fails")


@pytest.mark.parametrize(("template_is", "status"), [("alive", -9), ("killed", UNKNOWN), ("stopped", UNKNOWN)])
def test_a_killed_worker_has_ended_whatever_became_of_the_template(start, made, template_is, status):
    process = start("waits")
    said(process)
    if template_is != "alive":
        made._process.send_signal(signal.SIGKILL if template_is == "killed" else signal.SIGSTOP)
    assert process.poll() is None
    process.kill()
    assert process.wait() == status
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    process.kill()  # ended: nothing to do


def test_a_worker_leaves_with_the_pipe_from_its_parent(start):
    process = start("waits")
    said(process)
    process.stdin.close()
    assert process.wait() == 143


def test_a_template_that_cant_import_or_has_threads_forks_nobody(folder):
    (folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    for module in ("nosuch", "threaded"):
        made = Template([module])
        for _ in range(2):
            with (folder / "log").open("ab") as log, pytest.raises(TemplateGoneError):
                made.fork("program", ["ends"], {}, log)
        made.close()


def test_a_stopped_template_is_given_up(start, made, monkeypatch):
    start("ends").wait()
    monkeypatch.setattr(forking, "FORKING_S", 0.3)
    made._process.send_signal(signal.SIGSTOP)
    with pytest.raises(TemplateGoneError):
        start("ends")
    assert made._process.poll() == -signal.SIGKILL


def test_who_asks_inside_has_the_same_template(folder):
    with warm(["program"]) as outer:
        with warm(["program"]) as inner:
            assert inner is outer
        with (folder / "log").open("ab") as log:
            assert outer.fork("program", ["ends"], dict(os.environ), log).wait() == 0
    assert outer._process.poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sweep_whose_template_is_lost_trains_every_run_once(make_plan, out, starts, monkeypatch, number):
    """Killed workers are replaced by processes that start without it."""
    monkeypatch.setattr(forking, "FORKING_S", 1.0)
    plan, heard = make_plan(seeds=range(3)), []

    def strike(event):
        heard.append(event)
        if Counter(one.kind for one in heard)["started"] == 1 and event.kind == "started":
            [made] = forking._warm
            worker = psutil.Process(made._process.pid).children()[0]
            template_process = psutil.Process(made._process.pid)
            template_process.send_signal(number)
            worker.kill()

    summary = run(plan, out, workers=1, on_event=strike, trainer="tests.sweeps.trainers:slow")
    assert (summary.done, summary.missing) == (6, 0)
    [lost] = [event for event in heard if event.kind == "lost"]
    assert f"worker 1 died (exit status {UNKNOWN}) while training" in lost.text
    assert all(recorded(run_folder(plan, one, out), one).status == "complete" for one in plan.runs)
    assert not forking._warm
