"""Processes killed at bad moments: nothing finished is lost, nothing unfinished counts, nothing is trained twice."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest

from core.records import run_record
from tests.ablations.shell import ROOT, ablate
from tests.ablations.test_run import DECLARATION
from tests.forked import is_alive, wait_until

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}


@pytest.fixture
def folder(tmp_path) -> Path:
    slow = DECLARATION.replace('"trainer.steps": 8', '"trainer.steps": 120').replace("range(3)", "range(4)")
    (tmp_path / "toy.py").write_text(slow)
    return tmp_path


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ablations", "run", "toy.py", "--workers", "2"]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def forked(parent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The template's process and its workers."""
    alive = []
    for process in psutil.Process(parent.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile, a zombie included
            if "core.runtime.fork_template" in " ".join(process.cmdline()):
                alive.append(process)
    return alive


def workers(parent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for process in forked(parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() != parent.pid:
                found.append(process)
    return found


def finished(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("record.json")}


def assert_whole(folder: Path) -> None:
    """Eight runs, each with one trusted record and one completed trial."""
    found = [run_record.read(path) for path in finished(folder)]
    assert len({record.run_hash for record in found}) == len(found) == 8
    assert all(record.status == "complete" for record in found)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "runs" / "journal.log"))
    study = optuna.load_study(study_name="toy", storage=optuna.storages.JournalStorage(backend))
    complete = [t.user_attrs["run_hash"] for t in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    assert Counter(complete) == dict.fromkeys((record.run_hash for record in found), 1)


@pytest.mark.slow
def test_kill_a_worker_then_the_parent_then_run_again(folder) -> None:
    parent = start(folder)
    try:
        wait_until(lambda: len(finished(folder)) >= 1 and len(workers(parent)) == 2)
        victim = workers(parent)[0]
        victim.kill()
        wait_until(lambda: victim.pid not in {p.pid for p in workers(parent)} and len(workers(parent)) == 2)
        wait_until(lambda: len(finished(folder)) >= 3)
        orphans = forked(parent)
        assert len(orphans) == 3
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(is_alive, orphans)), 20)
    before = finished(folder)
    assert 3 <= len(before) < 8
    again = ablate("run", "toy.py", "--workers", "2", cwd=folder)
    assert again.returncode == 0, again.stderr
    after = finished(folder)
    assert {path: after[path] for path in before} == before
    assert_whole(folder)


@pytest.mark.slow
def test_ctrl_c_stops_in_order_and_the_same_command_goes_on(folder) -> None:
    parent = start(folder)
    wait_until(lambda: len(finished(folder)) >= 1)
    stopped = forked(parent)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=120) == 130
    assert not any(p.is_running() for p in stopped)
    before = finished(folder)
    assert 1 <= len(before) < 8
    assert ablate("run", "toy.py", cwd=folder).returncode == 0
    assert {path: finished(folder)[path] for path in before} == before
    assert_whole(folder)
