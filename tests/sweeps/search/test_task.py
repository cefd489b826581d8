"""Tasks of a search's array, and when they requeue themselves."""

import json
import os
import signal

import pytest

from core.errors import UserError
from core.training import preemption
from core.training.checkpoint_files import FOLDER, LATEST, saved_step
from core.training.preemption import TrainingPausedError
from sweeps.launch import task
from sweeps.launch.slurm import submit
from sweeps.launch.slurm_request import Request
from sweeps.launch.worker import StopSignal
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Place
from sweeps.runs.folders import pending
from sweeps.runs.liveness import Workplace
from sweeps.search import queue as queues
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import confirmation_here
from sweeps.search.spec import Budget, Log
from sweeps.search.status import status
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import RATE, declare

LANDSCAPE = "tests.sweeps.search.trainers:landscape"
POOR = {RATE: 0.05}  # a control that is easily beaten


def work(out, train: str = LANDSCAPE, **changes) -> None:
    """One task's work, as its process does it."""
    planned = plan("toy", declare(**({"control": POOR} | changes)))
    job = {"plan": planned.to_json(), "out": str(out), "trainer": train, "lead_s": 1.0}
    stop = StopSignal((signal.SIGUSR1,), {signal.SIGUSR1: 60.0})
    task.begin(json.loads(json.dumps(job)), open_storage(default_url(out)), Workplace(Place("7", "0", 0)), stop)


def test_a_task_searches_then_confirms(slurm, tmp_path) -> None:
    work(tmp_path)
    now = status("toy", tmp_path)
    assert now.over and not now.is_under_way and now.counts["finished"] == 1 and now.counts["pruned"] == 8
    assert now.confirmation.counts["finished"] == len(now.confirmation.runs) == 6
    assert slurm["asked"] == []
    planned = plan("toy", declare(control=POOR))
    assert pending(confirmation_here(planned, tmp_path), tmp_path) == ()
    before = {path: path.read_bytes() for path in tmp_path.rglob("record.json")}
    work(tmp_path)  # one that comes late finds nothing to do
    assert {path: path.read_bytes() for path in tmp_path.rglob("record.json")} == before


def cut(config, folder, *, until=None, **rest):
    """As landscape, but each seed's training to the second rung is cut off once, by the signal before a time limit."""
    if until == 12 and saved_step(folder) == 4:
        with preemption.heeded():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert preemption.requested()
        (folder / FOLDER / LATEST).write_text(json.dumps({"step": 7, "name": "step"}))
        raise TrainingPausedError
    return trainers.landscape(config, folder, until=until, **rest)


def test_a_task_that_is_cut_off_puts_its_configuration_back_and_is_started_again(slurm, tmp_path) -> None:
    starts = 0
    while starts < 20 and (not starts or status("toy", tmp_path / "out").is_under_way):
        work(tmp_path / "out", "tests.sweeps.search.test_task:cut", seeds=(0, 1))
        starts += 1
    now = status("toy", tmp_path / "out")
    assert starts == 7 and now.preempted == 6  # three configurations reach that rung, under two seeds each
    assert slurm["asked"] == [("scontrol", "requeue", "7_0")] * 6
    work(tmp_path / "undisturbed", seeds=(0, 1))
    other = status("toy", tmp_path / "undisturbed")
    assert [(c.settings, c.value, c.state) for c in now.configurations] == [
        (c.settings, c.value, c.state) for c in other.configurations
    ]
    assert now.tokens == other.tokens  # what was trained before a cut was counted, and once
    assert now.confirmation.counts == other.confirmation.counts


def test_a_task_that_slurm_has_started_elsewhere_leaves(slurm, tmp_path) -> None:
    slurm["restarts"] = 1
    work(tmp_path)
    assert status("toy", tmp_path).configurations == () and slurm["asked"] == []


def test_a_task_whose_time_is_short_is_started_again(slurm, tmp_path) -> None:
    slurm["left"] = 0.5  # and a second is kept for checkpoints
    work(tmp_path)
    assert len(status("toy", tmp_path).configurations) == 1  # whoever is new begins
    assert slurm["asked"] == [("scontrol", "requeue", "7_0")]


def test_who_has_nothing_to_train_for_long_gives_its_place_back(slurm, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(queues, "IDLE_S", 0.0)
    changes = {"budget": Budget(trials=1), "pruner": "none"}
    storage, planned = open_storage(default_url(tmp_path)), plan("toy", declare(control=POOR, **changes))
    busy, _ = SearchLedger(planned, tmp_path, storage, Workplace(Place("7", "1", 0))).claim()
    ledger = SearchLedger(planned, tmp_path, storage, Workplace(Place("7", "0", 0)))
    assert task.TaskWorker(ledger, trainers.landscape, StopSignal((signal.SIGUSR1,)), 0.0).work()
    assert not ledger.is_over()
    work(tmp_path, **changes)
    assert slurm["asked"] == []
    busy.lock.release()


def test_nothing_trained_to_the_end_confirms_nothing(slurm, tmp_path, monkeypatch) -> None:
    changes = {"space": {RATE: Log(1.0, 10.0)}, "control": {RATE: 2.0}, "budget": Budget(trials=3)}
    with pytest.raises(UserError, match="no configuration was trained to the end"):
        work(tmp_path, **changes)
    monkeypatch.setattr(slurm_jobs, "is_installed", lambda: True)
    with pytest.raises(UserError, match="no configuration was trained to the end"):
        submit(plan("toy", declare(**changes)), tmp_path, Request())


def test_a_task_waits_for_records_that_it_cannot_see_yet(slurm, tmp_path, monkeypatch) -> None:
    work(tmp_path)
    planned = plan("toy", declare(control=POOR))
    ledger = SearchLedger(planned, tmp_path, open_storage(default_url(tmp_path)))
    [path] = [path for path in (tmp_path / "toy").rglob("record.json") if b'"status":"complete"' in path.read_bytes()]
    hidden = path.rename(path.with_name("hidden"))
    monkeypatch.setattr(queues, "SIGHT_S", 0.0)
    with pytest.raises(UserError, match="that the ledger knows as complete aren't there"):
        ledger.following()
    monkeypatch.setattr(queues, "SIGHT_S", 60.0)
    monkeypatch.setattr(queues.time, "sleep", lambda seconds: hidden.exists() and hidden.rename(path))
    assert len(ledger.following().plan.runs) == 6


def test_a_script_is_written_for_a_search_and_none_when_it_is_confirmed(slurm, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(task, "_leave_slurm", lambda environment: None)
    monkeypatch.setattr("sweeps.runs.slurm_jobs.is_installed", lambda: True)
    monkeypatch.setattr("sweeps.runs.slurm_jobs.submit", lambda script: "7")
    planned, request = plan("toy", declare(control=POOR)), Request(array_parallelism=4)
    dry = submit(planned, tmp_path, request, dry_run=True, trainer=LANDSCAPE)
    assert (dry.tasks, dry.runs, dry.job) == (4, 0, None) and not (tmp_path / "toy" / "design.json").exists()
    assert "-P -m sweeps.launch.task " in dry.text and "#SBATCH --array=0-3\n" in dry.text and not dry.script.exists()
    sent = submit(planned, tmp_path, request, trainer=LANDSCAPE)
    assert (sent.tasks, sent.job, sent.script.read_text()) == (4, "7", sent.text)
    assert task.main(sent.script.parent, {}) == 0  # as `sbatch` of that script would, outside Slurm
    assert not status("toy", tmp_path).is_under_way
    assert submit(planned, tmp_path, request, dry_run=True) is None
    assert [path.name for path in (tmp_path / "toy" / "slurm").iterdir()] == ["1"]
    more = submit(plan("toy", declare(control=POOR, budget=Budget(trials=30))), tmp_path, request, dry_run=True)
    assert more is not None
