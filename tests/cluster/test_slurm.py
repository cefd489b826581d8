"""Sweeps as arrays of a real Slurm, and what can happen to them there.

After each: one record per run, one complete trial per run, and the values of an undisturbed sweep.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from ablations.__main__ import main
from core.config.loading import build
from core.config.run import config_hash, to_yaml
from core.records import run_record
from core.records.run_record import RunRecord
from core.training.run import train
from sweeps.launch import slurm
from sweeps.launch.slurm_request import Request
from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Task
from sweeps.runs.folders import recorded, run_folder
from sweeps.storage.storage import default_url, open_storage
from sweeps.storage.submissions import job_name
from tests.ablations.test_run import DECLARATION
from tests.ablations.test_until_decided import DECLARATION as WEIGHTS
from tests.cluster.trainers import CUTS
from tests.core.training.test_run import QUICK

SOURCE_ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def trials_of(plan, out):
    storage = open_storage(default_url(out))
    return storage.get_all_trials(storage.get_study_id_from_name(plan.study_name))


def check_whole(plan, out) -> list[RunRecord]:
    """Every run has its one record and its one complete trial, and nothing is left over."""
    found = [recorded(run_folder(plan, run, out), run) for run in plan.runs]
    assert [record and record.status for record in found] == ["complete"] * len(plan.runs)
    assert len(list(out.rglob("record.json"))) == len(plan.runs)
    trials = trials_of(plan, out)
    assert not [trial for trial in trials if not trial.state.is_finished()]
    complete = Counter(t.user_attrs["run_hash"] for t in trials if t.state.name == "COMPLETE")
    assert complete == {run.run_hash: 1 for run in plan.runs}
    return [record for record in found if record]


def check_quick(plan, out) -> None:
    """The values that the light trainer gives where nothing disturbs it."""
    for record in check_whole(plan, out):
        weight = record.config["objective"]["load_balancing_weight"]
        assert record.metrics == {"val/nelbo": 2.0 + record.seed + weight}


def reasons(plan, out) -> Counter:
    return Counter(t.user_attrs.get("reason") for t in trials_of(plan, out) if t.state.name == "FAIL")


def starts(place: Path) -> list[list[str]]:
    path = place / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def submit(plan, out, trainer: str, tasks: int, **sbatch: str) -> str:
    request = Request(partition="low", time="30m", array_parallelism=tasks, sbatch={"mem": "1G"} | sbatch)
    done = slurm.submit(plan, out, request, trainer=f"tests.cluster.trainers:{trainer}")
    assert done is not None and done.job is not None
    return done.job


def ended(job: str) -> bool:
    return not slurm_jobs.tasks(jobs=[job])


def the_task(job: str, number: int = 0) -> Task:
    [task] = [task for task in slurm_jobs.tasks(jobs=[job]) if task.task == str(number)]
    return task


def test_an_array_trains_every_run_once(cluster, make_plan, tmp_path) -> None:
    """24 runs, in a folder whose name has to be quoted; a dry run before leaves nothing."""
    plan, out = make_plan(seeds=range(1, 13)), tmp_path / "50% of 'it' #1"
    request = Request(partition="low", time="30m", array_parallelism=3, sbatch={"mem": "1G"})
    dry = slurm.submit(plan, out, request, trainer="tests.cluster.trainers:gated", dry_run=True)
    assert dry is not None and (dry.job, dry.tasks, dry.runs) == (None, 3, 24)
    assert not slurm_jobs.tasks(name=job_name(plan.study_name, out))
    assert not dry.script.parent.exists()
    sent = slurm.submit(plan, out, request, trainer="tests.cluster.trainers:gated")
    assert sent is not None and sent.job is not None and sent.script.read_text() == sent.text
    job = sent.job
    assert len(slurm_jobs.tasks(name=job_name(plan.study_name, out))) == 3
    cluster.wait_until(lambda: ended(job))
    check_quick(plan, out)
    assert Counter(run for run, *_ in starts(tmp_path)) == {run.run_hash: 1 for run in plan.runs}
    assert all(t.user_attrs["slurm"]["job"] == job for t in trials_of(plan, out) if t.state.name == "COMPLETE")
    assert len(list(sent.script.parent.glob("log-*.txt"))) == 3


def cut_by_signal(cluster, job: str) -> None:
    cluster.run("scancel", "--signal=USR1", f"{job}_0")


def cut_by_priority(cluster, job: str) -> None:
    node = the_task(job).nodes
    cluster.run("sbatch", "-p", "high", "-w", node, "-c", "4", "--output=/dev/null", "--wrap", "sleep 1")


def cut_by_requeue(cluster, job: str) -> None:
    cluster.run("scontrol", "requeue", f"{job}_0")


def cut_by_time(cluster, job: str) -> None:
    cluster.run("scontrol", "update", f"JobId={job}_0", "TimeLimit=2")  # less is left than the lead
    cluster.wait_until(lambda: the_task(job).restarts == 1)
    cluster.run("scontrol", "update", f"JobId={job}_0", "TimeLimit=30")


@pytest.mark.parametrize(
    "cuts", [(cut_by_signal, cut_by_priority), (cut_by_requeue,), (cut_by_time,)], ids=["twice", "requeue", "time"]
)
def test_a_run_that_is_cut_off_goes_on_exactly(cuts, cluster, make_plan, tmp_path, monkeypatch) -> None:
    """By a signal and then by a job of higher priority, by scontrol requeue, by the time limit; checkpoint_every is 0."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("CUTS", str(len(cuts)))
    settings = ["trainer.steps=30", "trainer.log_every=1", "trainer.validate_every=10"]
    plan, out = make_plan(overrides=settings, seeds=(0,)), tmp_path / "out"
    job = submit(plan, out, "cut", tasks=1, **{"cpus-per-task": "4"})
    for count, (step, cut) in enumerate(zip(CUTS, cuts, strict=False)):
        cluster.wait_until(lambda step=step: (tmp_path / f"at-{step}").exists())
        assert the_task(job).restarts == count
        cut(cluster, job)
    cluster.wait_until(lambda: ended(job))
    disturbed, other = check_whole(plan, out)
    assert reasons(plan, out) == {"preempted": len(cuts)}
    for run in plan.runs:  # every step once
        assert [int(line) for line in (tmp_path / run.run_hash).read_text().split()] == list(range(1, 31))
    threads = torch.get_num_threads()
    torch.set_num_threads(disturbed.provenance["threads"])
    whole = train(plan.runs[0].config, tmp_path / "undisturbed")
    torch.set_num_threads(threads)
    assert disturbed.curve == whole.curve and disturbed.validation == whole.validation
    assert disturbed.expert_load == whole.expert_load
    timings = {"train/tokens_per_second"}
    assert {k: v for k, v in disturbed.metrics.items() if k not in timings} == {
        k: v for k, v in whole.metrics.items() if k not in timings
    }
    tracked = [path.name.rsplit("-", 1)[1] for path in run_folder(plan, plan.runs[0], out).glob("wandb/offline-run-*")]
    assert len(tracked) == len(cuts) + 1 and len(set(tracked)) == 1  # its own W&B run, gone on with
    assert other.curve != whole.curve


def test_a_killed_worker_is_replaced(cluster, make_plan, tmp_path) -> None:
    plan, out = make_plan(seeds=range(2)), tmp_path / "out"
    job = submit(plan, out, "gated", tasks=1)
    cluster.wait_until(lambda: starts(tmp_path))
    [(run, pid, _)] = starts(tmp_path)
    os.kill(int(pid), signal.SIGKILL)
    (tmp_path / "go").touch()
    cluster.wait_until(lambda: ended(job))
    check_quick(plan, out)
    assert reasons(plan, out) == {"lost: worker died": 1}
    assert Counter(run for run, *_ in starts(tmp_path)) == {r.run_hash: 1 + (r.run_hash == run) for r in plan.runs}


def test_a_run_that_keeps_killing_its_workers_is_given_up(cluster, make_plan, tmp_path) -> None:
    plan, out = make_plan(seeds=(1,)), tmp_path / "out"
    request = Request(partition="low", time="30m", array_parallelism=1)
    done = slurm.submit(plan, out, request, trainer="tests.sweeps.trainers:deadly")
    cluster.wait_until(lambda: ended(done.job))
    deadly, harmless = (recorded(run_folder(plan, run, out), run) for run in plan.runs)
    assert deadly.status == "failed" and "worker died 3 times" in deadly.reason
    assert harmless.status == "complete"


def test_the_runs_of_a_lost_node_are_trained_elsewhere(cluster, make_plan, tmp_path) -> None:
    """While its worker lives on, nobody else touches its run; once it is dead, another one takes it."""
    plan, out = make_plan(seeds=range(2)), tmp_path / "out"
    job = submit(plan, out, "gated", tasks=1, **{"cpus-per-task": "4"})
    cluster.wait_until(lambda: starts(tmp_path))
    [(run, pid, _)] = starts(tmp_path)
    node = the_task(job).nodes
    family = [psutil.Process(int(pid)), *psutil.Process(int(pid)).parents()]
    family = [process for process in family if process.name() not in ("pytest", "systemd") and process.pid > 1]
    number = int(node.removeprefix("n"))
    try:
        cluster.kill_node(number)
        cluster.wait_until(lambda: the_task(job).restarts == 1)
        cluster.wait_until(lambda: len(starts(tmp_path)) == 4)  # the others, by the task's next worker
        assert the_task(job).nodes != node
        assert [start[0] for start in starts(tmp_path)].count(run) == 1
        for process in family:
            if process.name().startswith(("python", "slurmstepd", "bash", "slurm_script", "srun")):
                process.kill()
        (tmp_path / "go").touch()
        cluster.wait_until(lambda: ended(job))
    finally:
        cluster.start_node(number)
    check_quick(plan, out)
    assert reasons(plan, out) == {"lost: Slurm took its worker's node away": 1}
    assert config_hash(plan.runs[0].config) == run
    assert Counter(start[0] for start in starts(tmp_path)) == {r.run_hash: 1 + (r.run_hash == run) for r in plan.runs}


def test_the_command_line_submits_follows_cancels_and_retries(cluster, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "toy.py").write_text(DECLARATION.replace('"trainer.steps": 8', '"trainer.steps": 1000000'))

    def ablate(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    run = ("run", "toy.py", "--launcher", "slurm", "--array-parallelism", "1")
    for options, said in [
        (["--partition", "nosuch"], "invalid partition specified: nosuch"),
        (["--partition", "closed"], "Access/permission denied"),
        (["--gpus-per-run", "9"], "Requested node configuration is not available"),
        (["--account", "it's #1", "--sbatch", "nosuch=1"], "unrecognized option '--nosuch=1'"),
    ]:
        code, text = ablate(*run, *options)
        about_data, refusal = text.strip().splitlines()
        assert code == 2 and refusal.startswith("ablate: Slurm refuses the job: ") and said in refusal
        assert about_data.startswith("data.corpus=markov: ")
    code, text = ablate(*run, "--gpus-per-run", "1", "--sbatch", "comment=50% of 'it' #1 \\ $HOME")
    assert code == 0 and "6 runs wait for 1 array task" in text and "next: ablate status toy.py" in text
    job = re.search(r"^job (\d+): ", text, re.M)[1]
    shown = cluster.run("squeue", "-h", "-r", "-j", job, "-O", "tres-per-node:|,Comment:|")
    assert shown == "gres:gpu:1|50% of 'it' #1 \\ $HOME|"

    def content() -> dict:
        return json.loads(ablate("status", "toy.py", "--json")[1])

    cluster.wait_until(lambda: any(row["step"] for row in content()["runs"]))
    assert content()["counts"] | {"queued": 5, "running": 1} == content()["counts"]
    code, text = ablate("status", "toy.py")
    assert "6 runs: 5 queued, 1 running" in text and "Slurm: 1 task running" in text and f"{job}_0 on" in text
    code, text = ablate("cancel", "toy.py")
    assert code == 0 and "1 array task cancelled" in text
    cluster.wait_until(lambda: ended(job))
    after = content()
    assert after["counts"] | {"queued": 6, "running": 0} == after["counts"] and after["preempted"] == 1
    assert len(list(tmp_path.rglob("latest.json"))) == 1  # of the run that was cancelled
    code, text = ablate("retry", "toy.py", "--lost")
    assert code == 0 and "0 failed and 0 lost, stopped or new runs queued; 6 wait" in text
    assert "next: ablate run toy.py --launcher slurm" in text


def test_srun_trains_one_run_on_two_nodes(cluster, tmp_path) -> None:
    config = build(QUICK | {"trainer.strategy": "deepspeed", "deepspeed.stage": 2, "deepspeed.expert_parallel": 2})
    own = train(config, tmp_path / "own", devices=2)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    # The virtual nodes have no names of their own to be found by.
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(SOURCE_ROOT), "WANDB_MODE": "disabled"}
    places = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--mem=1G", "--mpi=none"]
    words = ["-m", "ablations", "train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        ["srun", *places, sys.executable, *words], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("record.json")
    record = run_record.read(path)
    assert record.status == "complete" and record.provenance["devices"] == 2
    assert record.curve == own.curve and record.validation == own.validation


def test_seeds_are_bought_in_arrays_until_it_is_decided(cluster, tmp_path, monkeypatch, capsys) -> None:
    """An array for each block; afterwards the same command has nothing to buy."""
    monkeypatch.setattr("ablations.cli.run.POLL_S", 0.2)
    monkeypatch.setattr(slurm, "submit", functools.partial(slurm.submit, trainer="tests.sweeps.trainers:noisy"))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE_ROOT))
    path, out = tmp_path / "weights.py", tmp_path / "runs"
    path.write_text(WEIGHTS)
    options = "--until-decided --launcher slurm --array-parallelism 2 --out"
    command = ["run", str(path), *options.split(), str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.count("job ") >= 1 and "Bought until decided" in said.out and "open" in said.err
    count = len(list(out.rglob("record.json")))
    assert 12 <= count < 36
    assert main(command) == 0 and len(list(out.rglob("record.json"))) == count
