"""Processes forked by a forked one, without a template, and what ends one (test_template.py of sweeps: what each is)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from core.runtime import forking
from core.runtime.child_process import import_path, leave_with_parent
from core.runtime.forking import Process, Template, TemplateGoneError, begin, warm
from tests.forked import is_alive, wait_until

HERE = "tests.core.runtime.test_forking"


def main(arguments: Sequence[str]) -> object:
    """The program that these tests fork; it answers with a line of JSON."""
    if arguments[0] == "tell":
        told = {"argv": sys.argv, "pid": os.getpid(), "heavy": "sqlite3" in sys.modules}
        print(json.dumps(told), flush=True)
        print("to the log", file=sys.stderr)
        return int(sys.stdin.readline())  # what comes after the order
    if arguments[0] == "fork":
        with warm(()) as template, Path(arguments[1]).open("wb") as log:
            child = begin(template, HERE, ["tell"], os.environ, log)
            print(child.stdout.readline().decode(), end="", flush=True)
            child.stdin.write(b"7\n")
            return child.wait()
    if arguments[0] == "sleep":
        leave_with_parent(sys.stdin.fileno())  # else it outlives a pytest that is killed
        print(json.dumps({"pid": os.getpid()}), flush=True)
        time.sleep(600)
    return None


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    """A template of one's own, which may be killed; it has imported what costs nothing."""
    monkeypatch.setattr(forking, "_warm", [])
    with warm(("sqlite3",)) as own:
        assert own is not None
        yield own


@pytest.fixture
def fork(template: Template, tmp_path: Path) -> Callable[..., Process]:
    def start(*arguments: str, **environment: str) -> Process:
        with (tmp_path / "log").open("ab") as log:
            return begin(template, HERE, arguments, os.environ | import_path() | environment, log)

    return start


def heard(process: Process) -> dict:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_a_forked_process_has_others_forked_from_the_same_template(fork, tmp_path) -> None:
    process = fork("fork", str(tmp_path / "inner"))
    told = heard(process)
    assert process.wait() == 7 and told["argv"] == [HERE, "tell"]
    assert told["pid"] != process.pid and told["heavy"] and (tmp_path / "inner").read_text() == "to the log\n"


def test_without_the_template_processes_are_interpreters_of_their_own(fork, template) -> None:
    before = fork("sleep")
    heard(before)
    template._process.kill()
    template._process.wait()
    with pytest.raises(TemplateGoneError), open(os.devnull, "wb") as log:
        template.fork(HERE, ["tell"], os.environ, log)
    after = fork("tell")
    after.stdin.write(b"0\n")
    after.stdin.flush()
    assert isinstance(after, subprocess.Popen) and not heard(after)["heavy"] and after.wait() == 0
    before.kill()
    assert before.wait() == forking.UNKNOWN  # nobody is there to tell the signal


def test_a_template_ends_with_whoever_started_it(tmp_path) -> None:
    program = (
        "import sys, time; from core.runtime.forking import Template\n"
        "template = Template(['sqlite3']); template.start(); print(template._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, env=os.environ | import_path(), stdout=subprocess.PIPE, text=True)
    template = psutil.Process(int(parent.stdout.readline()))
    assert is_alive(template)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(template), 60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
