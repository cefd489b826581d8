"""Array tasks: when they begin another run, and when they requeue themselves."""

import os
import signal

import pytest
import torch

from sweeps.launch import task as tasks
from sweeps.launch.task import work
from sweeps.launch.worker import StopSignal
from sweeps.runs.array_tasks import Place
from sweeps.runs.ledger import Ledger
from sweeps.runs.liveness import PREEMPTED, Workplace
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.trainers import quick


@pytest.fixture
def ledger(make_plan, tmp_path):
    place = Workplace(Place("7", "0", 0))
    return Ledger(make_plan(), tmp_path / "out", open_storage(default_url(tmp_path / "out")), place)


def stop():
    return StopSignal((signal.SIGUSR1,))


def test_the_first_worker_of_a_script_submitted_by_hand_queues_the_runs(ledger, slurm):
    work(ledger, quick, stop(), 1.0)
    assert len(ledger.durations_s()) == 4 and ledger.waiting() == 0
    assert slurm["asked"] == []


def test_a_task_with_too_little_time_for_another_run_is_started_again(ledger, slurm, monkeypatch):
    ledger.reconcile()
    monkeypatch.setattr(ledger, "durations_s", lambda: [100.0] * 9 + [400.0])
    slurm["left"] = 200.0
    work(ledger, quick, stop(), 120.0)
    assert ledger.waiting() == 3  # a new task begins a run whatever its time: it goes on in pieces if it must
    assert slurm["asked"] == [("scontrol", "requeue", "7_0")]
    slurm["left"] = None  # no limit
    work(ledger, quick, stop(), 120.0)
    assert ledger.waiting() == 0


def test_a_task_that_slurm_has_started_elsewhere_leaves(ledger, slurm):
    ledger.reconcile()
    slurm["restarts"] = 1
    work(ledger, quick, stop(), 1.0)
    assert ledger.waiting() == 4
    assert slurm["asked"] == []  # one owner: it is started again already


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_cancelled_task_is_not_brought_back(ledger, slurm, state):
    ledger.reconcile()
    slurm["state"], slurm["left"] = state, 0.0
    work(ledger, quick, stop(), 1.0)
    assert ledger.waiting() == 3
    assert slurm["asked"] == []


def test_a_task_stays_while_slurm_does_not_answer(ledger, slurm):
    ledger.reconcile()
    slurm["away"] = True
    tasks.requeue(ledger.workplace.place, 0.05)
    assert len(slurm["asked"]) > 1


def test_a_run_that_is_stopped_waits_for_anybody(ledger, slurm):
    ledger.reconcile()

    def train(config, folder, **rest):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("the signal was not heeded")

    work(ledger, train, stop(), 1.0)
    assert slurm["asked"] == [("scontrol", "requeue", "7_0")] and ledger.waiting() == 4
    assert [t.user_attrs["reason"] for t in ledger._study.get_trials() if t.state.name == "FAIL"] == [PREEMPTED]


def test_libraries_dont_see_the_job(monkeypatch):
    environment = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_CONF": "x", "SLURM_CPUS_ON_NODE": "1", "HOME": "/"}
    threads = torch.get_num_threads()
    tasks._leave_slurm(environment)
    assert environment == {"SLURM_JOB_ID": "7", "SLURM_CONF": "x", "HOME": "/"} and torch.get_num_threads() == 1
    torch.set_num_threads(threads)
