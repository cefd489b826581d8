"""Dead workers by Slurm's states, and a study's status with them."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from core.errors import UserError
from core.records import run_record
from core.records.fencing import FencedOffError
from sweeps.launch import running_sweeps
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Place, Task
from sweeps.runs.folders import LOCK_FILE, LOSSES_FILE
from sweeps.runs.ledger import MOST_LOSSES, Ledger
from sweeps.runs.liveness import LOST, MOVED, PREEMPTED, Workplace
from sweeps.runs.progress import PROGRESS_FILE
from sweeps.runs.slurm_jobs import SlurmError
from sweeps.runs.status import status
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.trainers import overwrite, quick


def task(number="0", state="RUNNING", restarts=0, job="7"):
    return Task(job, number, state, "None", restarts, 600.0, "n1")


@pytest.fixture
def queue(monkeypatch):
    """What Slurm is made to say; an exception in it is raised."""
    told = [task("0"), task("1")]

    def tasks(**chosen):
        for entry in told:
            if isinstance(entry, Exception):
                raise entry
        return list(told)

    monkeypatch.setattr(slurm_jobs, "tasks", tasks)
    monkeypatch.setattr("sweeps.runs.liveness.QUEUE_AGE_S", -1.0)
    return told


@pytest.fixture
def ledgers(make_plan, tmp_path):
    """Ledgers of one plan as seen from hosts, by array task."""
    plan = make_plan(seeds=(0,))

    def make(host, number="0", restarts=0, job="7"):
        place = Workplace(Place(job, number, restarts))
        place._host = host
        return Ledger(plan, tmp_path / "out", open_storage(default_url(tmp_path / "out")), place)

    return make


def reasons(ledger):
    return Counter(trial.user_attrs.get("reason") for trial in ledger._study.get_trials() if trial.state.name == "FAIL")


def die(ledger):
    claim, _ = ledger.claim()
    claim.lock.release()
    return claim


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([task("0")], None),  # Slurm says that it lives: locks may not be shared between hosts
        ([task("0", "COMPLETING", restarts=1)], None),
        ([SlurmError("socket timed out")], None),
        ([task("0", "PENDING", restarts=1)], MOVED),
        ([task("0", "RUNNING", restarts=1)], MOVED),
        ([task("1")], LOST),
        ([], LOST),
    ],
)
def test_slurm_says_whether_a_worker_on_another_host_is_dead(ledgers, queue, said, reason):
    mine, other = ledgers("b", "1"), ledgers("a")
    mine.reconcile()
    lost = die(other)
    queue[:] = said
    found = mine.reconcile()
    assert [entry.run for entry in found] == ([lost.run] if reason else [])
    assert reasons(mine) == ({reason: 1} if reason else {})
    assert mine.waiting() == (2 if reason else 1)


def test_on_the_same_host_the_lock_tells(ledgers, queue):
    mine, other = ledgers("a", "1"), ledgers("a")
    mine.reconcile()
    claim, _ = other.claim()
    queue[:] = []
    assert mine.reconcile() == []
    claim.lock.release()
    queue[:] = [SlurmError("away")]
    assert [entry.run for entry in mine.reconcile()] == [claim.run]


def test_a_run_is_given_up_after_three_workers_of_one_job_and_lost_nodes_dont_count(ledgers, queue):
    first = ledgers("a")
    first.reconcile()
    for restarts in range(1, 4):
        die(ledgers("a", restarts=restarts - 1))
        queue[:] = [task("0", restarts=restarts)]
        ledgers("a", restarts=restarts).reconcile()
    assert reasons(first) == {MOVED: 3}
    for count in range(MOST_LOSSES + 1):  # each in a process of its own, as it were
        die(ledgers("a", restarts=3))
        [lost] = ledgers("a", restarts=3).reconcile()
        assert lost.gave_up == (count == MOST_LOSSES)
    record = run_record.read(next((first.out / "balance").rglob("record.json")))
    assert record.status == "failed" and "worker died 3 times" in record.reason


def test_a_run_that_is_put_back_waits_at_once_and_keeps_its_attempt(ledgers, queue):
    mine, other = ledgers("a"), ledgers("b", "1")
    mine.reconcile()
    claim, _ = mine.claim()
    mine.put_back(claim, PREEMPTED)
    again, _ = other.claim()
    assert (again.run, again.attempt) == (claim.run, 0)
    again.lock.release()
    queue[:] = []
    mine.reconcile()
    third, _ = mine.claim()
    assert (third.run, third.attempt) == (claim.run, 1)  # from its first step: another W&B run
    (third.folder / "checkpoints").mkdir()
    (third.folder / "checkpoints" / "latest.json").write_text('{"step": 3}')
    third.lock.release()
    mine.reconcile()
    fourth, _ = mine.claim()
    assert (fourth.run, fourth.attempt) == (claim.run, 1)
    mine.finish(fourth, quick(fourth.run.config, fourth.folder), {})
    assert reasons(mine) == {PREEMPTED: 1, LOST: 2}


def test_a_task_whose_node_came_back_leaves_its_run_to_whoever_has_it(ledgers, queue):
    mine, other = ledgers("a"), ledgers("b", "1")
    mine.reconcile()
    claim, _ = mine.claim()
    (claim.folder / LOCK_FILE).unlink()  # the file server gave it up with the node
    queue[:] = [task("0", "RUNNING", restarts=1), task("1")]
    assert [entry.run for entry in other.reconcile()] == [claim.run]
    taken, _ = other.claim()
    assert taken.run == claim.run
    before = {trial.number: trial.state for trial in mine._study.get_trials()}
    with claim.lock.heeded(), pytest.raises(FencedOffError, match="took this run over"):
        quick(claim.run.config, claim.folder)
    mine.put_back(claim, PREEMPTED)
    assert {trial.number: trial.state for trial in mine._study.get_trials()} == before
    other.finish(taken, quick(taken.run.config, taken.folder), {})
    assert reasons(mine) == {MOVED: 1}
    assert not (claim.folder / LOSSES_FILE).exists()  # the run killed nobody


@pytest.mark.parametrize("content", ['{"name": "step-3", "st', "", "[]", '{"step": null}', "\0"])
def test_half_of_a_latest_json_ends_no_claim(content, ledgers, queue):
    ledger = ledgers("a")
    ledger.reconcile()
    claim, _ = ledger.claim()
    (claim.folder / "checkpoints").mkdir()
    (claim.folder / "checkpoints" / "latest.json").write_text(content)
    claim.lock.release()
    ledger.reconcile()
    again, _ = ledger.claim()
    assert (again.run, again.attempt) == (claim.run, 1)  # there is no checkpoint: from its first step
    again.lock.release()


def test_squeue_is_read_back(monkeypatch):
    lines = "7|0|RUNNING|None|0|1-02:03:04|n1|8|\n7|1|PENDING|(Resources)|2|30:00||9|\n7|2|RUNNING|None|0|UNLIMITED|n2|10|\n"
    monkeypatch.setattr(slurm_jobs, "call", lambda *command: lines)
    assert [(t.name, t.state, t.restarts, t.seconds_left) for t in slurm_jobs.tasks(jobs=["7"])] == [
        ("7_0", "RUNNING", 0, 93784.0),
        ("7_1", "PENDING", 2, 1800.0),
        ("7_2", "RUNNING", 0, None),
    ]


def test_slurms_commands_are_tried_again_while_its_controller_is_away(tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    program.write_text(
        f"#!/bin/sh\necho x >>{tmp_path}/calls\n[ $(wc -l <{tmp_path}/calls) -ge 3 ] && echo done && exit 0\n"
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm_jobs, "PAUSES_S", (0.0, 0.0, 0.0))
    assert slurm_jobs.call("squeue") == "done\n"
    (tmp_path / "calls").unlink()
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        slurm_jobs.call("squeue", again=())
    assert (tmp_path / "calls").read_text() == "x\n"


def test_the_status_counts_every_run_once(make_plan, tmp_path, queue):
    plan, out = make_plan(seeds=range(4)), tmp_path / "out"
    with pytest.raises(UserError, match="nothing of balance has been run in"):
        status("balance", out)
    ledger = Ledger(plan, out, open_storage(default_url(out)))
    (out / "balance").mkdir()
    (out / "balance" / "design.json").write_text(json.dumps(plan.design.to_json()))
    ledger.reconcile()
    claims = [ledger.claim()[0] for _ in range(6)]
    ledger.finish(claims[0], quick(claims[0].run.config, claims[0].folder), {})
    failed = run_record.RunRecord(
        **(vars(quick(claims[1].run.config, claims[1].folder)) | {"status": "failed", "reason": "NaN"})
    )
    overwrite(failed, claims[1].folder)
    ledger.finish(claims[1], failed, {})
    ledger.put_back(claims[2], PREEMPTED)
    ledger.abandon(claims[3], "interrupted")
    now = time.time()
    row = {"step": 15, "steps": 30, "loss": 3.0, "started": now - 10, "updated": now}
    (claims[4].folder / PROGRESS_FILE).write_text(json.dumps(row))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ledger._storage.set_trial_user_attr(claims[5].trial_id, "pid", dead.pid)
    before = (out / "journal.log").read_bytes()
    found = status("balance", out)
    wanted = {"queued": 3, "running": 1, "finished": 1, "failed": 1, "lost": 1, "stopped": 1, "missing": 0}
    assert found.counts == wanted
    assert (found.preempted, found.deaths, found.silence) == (1, 0, None)
    [running], [broken] = found.of("running"), found.of("failed")
    assert (running.step, running.steps) == (15, 30) and running.seconds_left is not None
    assert broken.reason == "NaN" and json.loads(json.dumps(found.to_dict()))["counts"] == wanted
    assert (out / "journal.log").read_bytes() == before


def test_a_sweep_of_this_machine_is_found_and_asked_to_stop(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from sweeps.launch.running_sweeps import registered_in\n"
        "with registered_in(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    assert running_sweeps.found(tmp_path) == []
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    assert [found for _, found in running_sweeps.found(tmp_path)] == [process.pid]
    assert running_sweeps.stop(tmp_path) == ([process.pid], [])
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert running_sweeps.stop(tmp_path) == ([], [])
    assert not list((tmp_path / ".sweeps").iterdir())
