"""Sweeps on a real Ray of several nodes on this host, and what can happen to them there."""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from ablations.cli.launching import check_flags
from ablations.cli.options import launcher_options
from ablations.cli.status import tasks_said
from core.errors import UserError
from sweeps.launch import ray_actor, ray_cluster, task
from sweeps.launch.launcher import Order, launchers, tasks_of
from sweeps.launch.ray_cluster import Request
from sweeps.runs import ray_tasks
from sweeps.runs.array_tasks import RAY_JOB, RAY_RESTARTS, RAY_TASK, Place, RayPlace
from sweeps.runs.ledger import Ledger
from sweeps.runs.liveness import LOST, MOVED, PREEMPTED, Workplace
from sweeps.runs.status import status
from sweeps.storage.storage import choose_url, default_url, open_storage
from sweeps.storage.submissions import RAY, STORAGE_FILE, new_folder, write_secret
from tests.cluster.test_slurm import check_quick, reasons, starts, trials_of

LIMIT_S = 60
GATED = "tests.cluster.trainers:gated"
MEMORY = {"object_store_memory": 80_000_000}
CONFIG = {  # a lost node is noticed in seconds, and no process starts before it is needed
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
}


def wait_until(condition) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def nodes():
    """A Ray of a head without CPUs and a node with two."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("nodes on one host need Linux")
    utils = pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": CONFIG}
    cluster = utils.Cluster(initialize_head=True, head_node_args={**head, **MEMORY})
    try:
        cluster.add_node(num_cpus=2, **MEMORY)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def cluster(nodes, monkeypatch, tmp_path):
    """The same, with workers that note their starts in this test's folder, and without workers when the test ends."""
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "PASSED_ON", (*ray_cluster.PASSED_ON, "PLACE"))
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    ray_cluster.cancel(tmp_path / "out" / "balance")
    wait_until(lambda: not actors())


def actors() -> list[str]:
    with ray_cluster.connected(None) as ray:
        return ray.util.list_named_actors()


def tasks(plan, out):
    return launchers()["ray"].tasks(out / plan.study_name)


def node_of(cluster, pid: int):
    """The node on which a worker process runs: its actor is a child of the node's raylet."""
    above = {process.pid for process in psutil.Process(pid).parents()}
    [node] = [node for node in cluster.list_all_nodes() if node.all_processes["raylet"][0].process.pid in above]
    return node


def submit_and_end(place: Path, plan, workers: int) -> str:
    """Submit a plan from a process that ends; what it says."""
    (place / "plan.json").write_text(json.dumps(plan.to_json()))
    code = (
        "import json, pathlib; from sweeps.launch import ray_cluster; from sweeps.studies.plan import Plan\n"
        "ray_cluster.PASSED_ON += ('PLACE',); request = ray_cluster.Request(workers=" + str(workers) + ")\n"
        f"here = pathlib.Path({str(place)!r}); plan = Plan.from_json(json.loads((here / 'plan.json').read_text()))\n"
        f"print(ray_cluster.submit(plan, here / 'out', request, trainer={GATED!r}).line)"
    )
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.service
def test_workers_outlive_their_command_and_are_cancelled_and_followed(cluster, make_plan, tmp_path):
    """Of three workers one waits for room. What they leave is trained to the end by the next."""
    plan, out = make_plan(seeds=(0, 1)), tmp_path / "out"
    assert "4 runs wait for 3 workers" in submit_and_end(tmp_path, plan, workers=3)

    def now():
        return status("balance", out, tasks_of=tasks_of)

    wait_until(lambda: now().counts["finished"] == 3 and now().counts["running"] == 1)
    assert any(text.startswith("Ray: ") for text in tasks_said(now()))
    [running] = [row for row in now().rows if row.state == "running"]
    assert str(running.where).startswith("Ray task ")
    count = len(tasks(plan, out))
    cancelled = launchers()["ray"].cancel(out / "balance", [out / "balance"])
    assert cancelled.count in (count, count - 1)  # one may just have ended
    assert not cancelled.notes and tasks_of(out / "balance") == ((), None)
    wait_until(lambda: not actors())
    assert now().counts["queued"] == 1  # put back, no loss
    (tmp_path / "go").touch()
    sent = ray_cluster.submit(plan, out, Request(), trainer=GATED)
    assert sent is not None and (sent.runs, sent.tasks) == (1, 1)
    wait_until(lambda: not tasks(plan, out))
    check_quick(plan, out)
    assert reasons(plan, out) == {PREEMPTED: 1}
    assert sorted(Counter(run for run, *_ in starts(tmp_path)).values()) == [1, 1, 1, 2]
    told = {trial.user_attrs["ray"]["job"] for trial in trials_of(plan, out) if trial.state.name == "COMPLETE"}
    assert told == {str(out / "balance" / "ray" / number) for number in ("1", "2")}
    assert ray_cluster.submit(plan, out, Request()) is None  # nothing waits


@pytest.mark.slow
@pytest.mark.service
def test_a_killed_worker_and_a_lost_node_lose_nothing(cluster, make_plan, tmp_path):
    """The one worker is killed, and then its node with all that is on it; Ray starts it on another node."""
    plan, out = make_plan(seeds=(0, 1)), tmp_path / "out"
    assert ray_cluster.submit(plan, out, Request(workers=1), trainer=GATED) is not None
    control = next(run.run_hash for run in plan.runs if run.seed == 0 and run.config.objective.load_balancing_weight)

    def disturbed() -> list[int]:
        return [int(pid) for run, pid, _ in starts(tmp_path) if run == control]

    wait_until(lambda: len(disturbed()) == 1)
    os.kill(disturbed()[0], signal.SIGKILL)
    cluster.add_node(num_cpus=1, wait=False, **MEMORY)
    wait_until(lambda: len(disturbed()) == 2)
    cluster.remove_node(node_of(cluster, disturbed()[1]), allow_graceful=False)
    wait_until(lambda: len(disturbed()) == 3)
    assert [(each.state, each.restarts) for each in tasks(plan, out)] == [("RUNNING", 1)]
    (tmp_path / "go").touch()
    wait_until(lambda: not tasks(plan, out))
    check_quick(plan, out)
    assert reasons(plan, out) == {LOST: 1, MOVED: 1}


@pytest.mark.slow
@pytest.mark.service
def test_a_storage_of_one_node_is_refused_before_anything_is_queued(cluster, make_plan, tmp_path):
    with pytest.raises(UserError, match=r"SQLite serves one node, and this cluster has 2"):
        ray_cluster.submit(make_plan(), tmp_path / "out", Request(), storage_url=f"sqlite:///{tmp_path}/runs.db")
    assert not list(tmp_path.rglob("*.db")) and not list(tmp_path.rglob("job.json"))


def test_a_user_without_ray_is_told_what_to_install(make_plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="--launcher ray takes the package ray: pip install ray"):
        launchers()["ray"].launch(make_plan(), tmp_path, Order())


def test_an_address_where_no_cluster_answers_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "ray", argparse.Namespace())  # isn't asked
    with (
        pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:9 \(--ray-address, \$RAY_ADDRESS\): "),
        ray_cluster.connected(None),
    ):
        pass
    with pytest.raises(UserError, match="--ray-address head: write host:port, ray://host:port or auto"):
        ray_cluster.check_answers("head")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"gpus": -1}, "gpus-per-run must be a whole number of at least 0, not -1"),
        ({"cpus": 0}, "cpus-per-run must be a whole number of at least 1, not 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(asked, text):
    with pytest.raises(UserError, match=text):
        Request(**asked)


def test_the_command_line_counts_its_workers(monkeypatch):
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers")
    launcher_options(parser)
    check_flags(
        parser.parse_args(["--launcher", "ray", "--workers", "3", "--ray-address", "auto", "--cpus-per-run", "2"])
    )
    with pytest.raises(UserError, match="--workers auto measures this machine; with --launcher ray name a number"):
        check_flags(parser.parse_args(["--launcher", "ray", "--workers", "auto"]))
    with pytest.raises(UserError, match="--ray-address is an option of --launcher ray: add that"):
        check_flags(parser.parse_args(["--ray-address", "auto"]))
    with pytest.raises(UserError, match="--dry-run is an option of --launcher slurm"):
        check_flags(parser.parse_args(["--launcher", "ray", "--dry-run"]))


def test_gpus_are_asked_for_where_the_cluster_has_some(make_plan):
    on_any, on_cpu = make_plan(), make_plan(overrides=["trainer.accelerator=cpu"])
    assert ray_cluster.gpus_of(on_any, Request(), there=0) == (0, ())
    number, [note] = ray_cluster.gpus_of(on_any, Request(), there=8)
    assert number == 1 and "--gpus-per-run N asks for another number" in note
    assert ray_cluster.gpus_of(on_any, Request(gpus=0), there=8) == (0, ())
    assert ray_cluster.gpus_of(on_cpu, Request(), there=8) == (0, ())


def test_a_node_has_room_for_whole_workers():
    assert ray_cluster.capacity({"CPU": 7.0, "GPU": 2.0}, {"CPU": 2, "GPU": 1}) == 2
    assert ray_cluster.capacity({"CPU": 7.0}, {"CPU": 2, "GPU": 0}) == 3
    assert ray_cluster.capacity({"CPU": 7.0}, {"CPU": 2, "GPU": 1}) == 0


def test_a_node_looks_whether_it_shares_the_folder_and_its_locks(tmp_path):
    path = tmp_path / "probe"
    assert ray_actor.look(str(path)) == "doesn't see it (No such file or directory)"
    with path.open("x") as file:
        assert ray_actor.look(str(path)) == "doesn't see its locks (flock)"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert ray_actor.look(str(path)) == ""


def say(folder: Path, number: int, state: str, restarts: int, silent_s: float = 0.0) -> None:
    path = ray_tasks.task_file(folder, number)
    path.write_text(json.dumps({"state": state, "restarts": restarts, "node": "n1"}))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_tasks_are_read_without_ray(tmp_path):
    study = tmp_path / "balance"
    assert not launchers()["ray"].has(study)
    folder = new_folder(study, RAY)
    say(folder, 0, "PENDING", -1, silent_s=3600)
    say(folder, 1, "RUNNING", 0)
    say(folder, 2, "RUNNING", 1, silent_s=600)
    found, silence = tasks_of(study)
    assert silence is None and [(each.task, each.state, each.restarts) for each in found] == [
        ("0", "PENDING", 0), ("1", "RUNNING", 0), ("2", "LOST", 2),
    ]  # fmt: skip
    assert [each.reason for each in found] == ["waits for room in Ray's cluster", "None", "no word for 10 min"]
    (folder / ray_tasks.CANCELLED).touch()
    assert tasks_of(study) == ((), None)


def test_the_storage_of_the_newest_submission_is_found(tmp_path):
    for kind, url in (("slurm", "journal:a"), ("ray", "journal:b")):
        write_secret(new_folder(tmp_path / "balance", kind) / STORAGE_FILE, url)
    os.utime(tmp_path / "balance" / "slurm" / "1" / STORAGE_FILE, (0, 0))
    assert choose_url(None, tmp_path, tmp_path / "balance") == "journal:b"


@pytest.mark.parametrize(("now", "reason"), [(("RUNNING", 0), None), (("RUNNING", 1), MOVED), (None, LOST)])
def test_a_run_of_another_node_is_taken_when_its_task_is_gone_or_started_again(now, reason, make_plan, tmp_path):
    plan, out, folder = make_plan(seeds=(0, 1)), tmp_path / "out", new_folder(tmp_path / "out" / "balance", RAY)
    theirs, storage = Workplace(RayPlace(str(folder), "0", 0)), open_storage(default_url(out))
    theirs._host = "elsewhere"
    ledger = Ledger(plan, out, storage, theirs)
    ledger.reconcile()
    claim, _ = ledger.claim()
    claim.lock.release()  # as on a file system that doesn't share locks
    if now is not None:
        say(folder, 0, *now)
    mine = Ledger(plan, out, storage)
    assert len(mine.reconcile()) == (reason is not None)
    assert reasons(plan, out) == ({reason: 1} if reason else {})


def test_a_worker_knows_its_task_and_is_started_again_by_its_actor():
    place = Place.of_environment({RAY_JOB: "/runs/balance/ray/1", RAY_TASK: "3", RAY_RESTARTS: "2"})
    assert isinstance(place, RayPlace) and place.label == "Ray task 3" and place.restarts == 2
    with pytest.raises(SystemExit) as ended:
        task.requeue(place, 1)
    assert ended.value.code == 143
