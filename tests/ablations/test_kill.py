"""Processes killed at bad moments: nothing finished is lost, nothing unfinished counts, nothing is trained twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest

from core import records
from tests.ablations.shell import ROOT, ablate
from tests.ablations.test_commands import DECLARATION
from tests.forked import is_alive, logging_to
from tests.forked import start as fork

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}


@pytest.fixture
def folder(tmp_path) -> Path:
    slow = DECLARATION.replace('"trainer.steps": 8', '"trainer.steps": 120').replace("range(3)", "range(4)")
    (tmp_path / "toy.py").write_text(slow)
    return tmp_path


def workers(folder: Path) -> list[psutil.Process]:
    return logging_to(*(folder / "runs" / "logs" / f"worker-{number}.log" for number in (1, 2)))


def finished(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("record.json")}


def wait_until(holds: Callable[[], object], limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def assert_whole(folder: Path) -> None:
    """Eight runs, each with one trusted record and one completed trial."""
    found = [records.read(path) for path in finished(folder)]
    assert len({record.run_hash for record in found}) == len(found) == 8
    assert all(record.status == "complete" for record in found)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "runs" / "journal.log"))
    study = optuna.load_study(study_name="toy", storage=optuna.storages.JournalStorage(backend))
    complete = [t.user_attrs["run_hash"] for t in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    assert Counter(complete) == dict.fromkeys((record.run_hash for record in found), 1)


@pytest.mark.slow
def test_kill_a_worker_then_the_parent_then_run_again(folder) -> None:
    command = ("ablations.__main__", "run", "toy.py", "--workers", "2")
    parent = fork(*command, cwd=folder, log=folder / "log", WANDB_MODE="disabled")
    try:
        wait_until(lambda: len(finished(folder)) >= 1 and len(workers(folder)) == 2)
        victim = workers(folder)[0]
        victim.kill()
        wait_until(lambda: victim.pid not in {p.pid for p in workers(folder)} and len(workers(folder)) == 2)
        wait_until(lambda: len(finished(folder)) >= 3)
        orphans = workers(folder)
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
    """As a terminal starts it: with an interpreter and a template of its own."""
    command = [sys.executable, "-m", "ablations", "run", "toy.py", "--workers", "2"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    parent = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **silent)
    wait_until(lambda: len(finished(folder)) >= 1)
    stopped = workers(folder)
    assert stopped
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=120) == 130
    assert not any(map(is_alive, stopped))
    before = finished(folder)
    assert 1 <= len(before) < 8
    assert ablate("run", "toy.py", cwd=folder).returncode == 0
    assert {path: finished(folder)[path] for path in before} == before
    assert_whole(folder)
