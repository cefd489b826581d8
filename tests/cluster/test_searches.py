"""Searches as arrays of a real Slurm: whatever happens to their tasks, the search is the one that nothing disturbs."""

import json
import os
import signal
from collections import Counter, defaultdict

import pytest

from sweeps.launch import slurm
from sweeps.launch.launcher import tasks_of
from sweeps.launch.slurm_request import Request
from sweeps.launch.worker import StopSignal, Worker
from sweeps.runs import slurm_jobs
from sweeps.runs.folders import pending
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import Results, confirmation_here
from sweeps.search.spec import Budget
from sweeps.search.status import status
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import declare
from tests.sweeps.search.test_task import POOR

pytestmark = pytest.mark.slow


def submit(planned, out, tasks: int) -> str:
    request = Request(partition="low", time="30m", array_parallelism=tasks, sbatch={"mem": "1G"})
    request = request.over({"sbatch": {"cpus-per-task": "4"}})
    done = slurm.submit(planned, out, request, trainer="tests.cluster.trainers:halting")
    assert done is not None and done.job is not None and (done.tasks, done.runs) == (tasks, 0)
    return done.job


def ended(job: str) -> bool:
    return not slurm_jobs.tasks(jobs=[job])


def found(results: Results) -> list[tuple]:
    return [(c.trial, dict(c.settings), c.status, c.values, dict(c.curve)) for c in results.configurations]


def trained(place) -> dict[str, list[tuple[int, int]]]:
    """The parts that each run was trained in."""
    parts = defaultdict(list)
    for line in (place / "steps").read_text().splitlines():
        run, start, end, _ = line.split()
        parts[run].append((int(start), int(end)))
    return parts


def test_a_preempted_search_goes_on_as_if_nothing_had_been(cluster, tmp_path, monkeypatch) -> None:
    """One task, so that what is drawn is determined; a job of higher priority takes its node in a training's midst."""
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    monkeypatch.setenv("HALT", "pause")
    planned, out = plan("toy", declare(control=POOR)), tmp_path / "out"
    job = submit(planned, out, tasks=1)
    cluster.wait_until(lambda: (tmp_path / "at").exists())
    now = status("toy", out, tasks_of=tasks_of)
    [running] = now.of("running")
    assert running.where.startswith(f"{job}_0 on ") and [task.state for task in now.tasks] == ["RUNNING"]
    cluster.run("sbatch", "-p", "high", "-w", now.tasks[0].nodes, "-c", "4", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait_until(lambda: ended(job))
    now = status("toy", out, tasks_of=tasks_of)
    assert now.preempted == 1 and now.deaths == 0 and now.over and not now.is_under_way
    for parts in trained(tmp_path).values():  # every step once
        assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert any((4, 7) in parts for parts in trained(tmp_path).values())
    monkeypatch.delenv("STEPS")
    ledger = SearchLedger(planned, tmp_path / "whole", open_storage(default_url(tmp_path / "whole")))
    Worker(ledger, trainers.landscape, lambda **event: None, StopSignal()).work()
    whole = Results.load(ledger.folder, planned.design)
    assert found(Results.load(out / "toy")) == found(whole) and len(found(whole)) == 9
    confirming = confirmation_here(planned, out)
    assert len(confirming.runs) == 6 and pending(confirming, out) == ()
    assert slurm.submit(planned, out, Request(partition="low")) is None


def test_tasks_share_a_search_and_a_killed_worker_is_replaced(cluster, tmp_path, monkeypatch) -> None:
    """Each configuration is drawn once, and what the dead one trained is trained by another."""
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    monkeypatch.setenv("HALT", "wait")
    planned, out = plan("toy", declare(control=POOR, budget=Budget(trials=15), seeds=(0, 1))), tmp_path / "out"
    job = submit(planned, out, tasks=2)
    cluster.wait_until(lambda: (tmp_path / "at").exists() and (tmp_path / "at").read_text())
    os.kill(int((tmp_path / "at").read_text()), signal.SIGKILL)
    (tmp_path / "go").touch()
    cluster.wait_until(lambda: ended(job))
    now = status("toy", out, tasks_of=tasks_of)
    assert now.deaths == 1 and now.preempted == 0 and not now.is_under_way
    assert len(now.configurations) == 15 and now.counts["finished"] + now.counts["pruned"] == 15
    assert now.confirmation.counts["finished"] == len(now.confirmation.runs) > 0
    parts = Counter((run, part) for run, many in trained(tmp_path).items() for part in many)
    assert set(parts.values()) == {1}
    results = Results.load(out / "toy")
    assert len({json.dumps(c.settings, sort_keys=True) for c in results.configurations}) == 15
    for configuration in results.configurations:
        for record in configuration.records:
            steps = [int(step) for step in record.validation["step"]]
            values = [trainers.loss_of(planned.resolver.resolve(configuration.settings).config, step) for step in steps]
            assert record.validation["val/nelbo"] == pytest.approx([value + 0.01 * record.seed for value in values])
