"""Slurm requests and the batch script; no Slurm is needed here."""

import json
import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from core.errors import UserError
from sweeps.launch import slurm, slurm_request
from sweeps.launch.slurm_request import Request
from sweeps.storage.submissions import job_name, storage_of, submissions
from sweeps.studies.study import Resources


@pytest.mark.parametrize(
    ("text", "seconds", "clock"),
    [
        ("4h", 14400, "0-04:00:00"),
        ("90m", 5400, "0-01:30:00"),
        ("1d12h", 129600, "1-12:00:00"),
        ("30", 1800, "0-00:30:00"),
        ("4:30", 270, "0-00:04:30"),
        ("1:00:05", 3605, "0-01:00:05"),
        ("2-3", 183600, "2-03:00:00"),
        ("1-12:30", 131400, "1-12:30:00"),
    ],
)
def test_time_limits_are_read_as_people_and_slurm_write_them(text, seconds, clock):
    assert (slurm_request.seconds(text), slurm_request.clock(text)) == (seconds, clock)


@pytest.mark.parametrize("text", ["", "0", "forever", "4 h", "-1", "4h:30", "1.5h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="time: .* is not a time limit: write 4h"):
        slurm_request.seconds(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus_per_run": -1}, "gpus-per-run must be a whole number of at least 0, not -1"),
        ({"cpus_per_run": 0}, "cpus-per-run must be a whole number of at least 1, not 0"),
        ({"wrapper": "a\nb"}, "wrapper: .* can't stand in a batch script"),
        ({"gpus_per_run": 2, "sbatch": {"gpus-per-node": "4"}}, "gpus-per-run and gpus-per-node both ask for GPUs"),
        ({"gpus_per_run": 2, "sbatch": {"gres": "gpu:a100:4"}}, "gpus-per-run and gres both ask for GPUs"),
        ({"sbatch": {"gpus": "4", "tres-per-task": "gres/gpu:4"}}, "gpus and tres-per-task both ask for GPUs"),
        ({"cpus_per_run": 2, "sbatch": {"cpus-per-gpu": "4"}}, "cpus-per-run and cpus-per-gpu both ask for CPUs"),
        ({"sbatch": {"mem": "4G", "mem-per-gpu": "4G"}}, "mem and mem-per-gpu both ask for memory"),
        ({"array_parallelism": 0}, "array-parallelism must be a whole number of at least 1"),
        ({"sbatch": {"array": "0-9"}}, "sbatch: array is set by the script itself"),
        ({"sbatch": {"time": "1"}}, "sbatch: time has an option of its own"),
        ({"sbatch": {"--mem": "1G"}}, "'--mem' is not an option's name"),
        ({"cpus_per_run": 2, "sbatch": {"c": "4"}}, "'c' is short for another option: write its whole name"),
        ({"gpus_per_run": 2, "sbatch": {"gpus-per-n": "4"}}, "'gpus-per-n' is short for another option"),
        ({"gpus_per_run": 1, "sbatch": {"gres": "shard:2"}}, "gpus-per-run and gres both ask for GPUs"),
        ({"sbatch": {"comment": "a\nrm -rf /"}}, "can't stand in a batch script"),
        ({"partition": "a\n#SBATCH --array=0-999"}, "can't stand in a batch script"),
        ({"partition": ""}, "partition: it is empty"),
    ],
)
def test_impossible_requests_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        Request(**fields)


def test_options_are_key_value():
    options = slurm_request.parse_options(["mem=32G", "exclusive=", "comment=a=b"])
    assert options == {"mem": "32G", "exclusive": "", "comment": "a=b"}
    with pytest.raises(UserError, match="--sbatch mem is given twice, as 1G and 2G"):
        slurm_request.parse_options(["mem=1G", "mem=2G"])
    for wrong in ("mem", "--mem=3", "=3", "Mem=3"):
        with pytest.raises(UserError, match="is not an option: write key=value"):
            slurm_request.parse_options([wrong])


def test_the_command_line_goes_over_the_defaults_file(tmp_path):
    path = tmp_path / "ablate" / "slurm.toml"
    path.parent.mkdir()
    path.write_text('partition = "gpu"\ntime = "4h"\nsetup = ["module load cuda"]\n[sbatch]\nmem = "32G"\nnice = 5\n')
    defaults = slurm_request.defaults({"XDG_CONFIG_HOME": str(tmp_path)})
    assert defaults == slurm_request.defaults({"ABLATE_CONFIG": str(path)})
    request = defaults.over({"partition": "low", "time": None, "sbatch": {"mem": "64G"}})
    assert (request.partition, request.time, request.setup) == ("low", "4h", ["module load cuda"])
    assert request.sbatch == {"mem": "64G", "nice": "5"}
    assert slurm_request.defaults({"XDG_CONFIG_HOME": str(tmp_path / "none")}) == Request()
    # What asks for the same goes, under whichever name.
    assert defaults.over({"sbatch": {"mem-per-gpu": "9G"}}).sbatch == {"mem-per-gpu": "9G", "nice": "5"}
    known = Request(gpus_per_run=1, cpus_per_run=2, wrapper="box", sbatch={"gres": "disk:1"})
    request = known.over({"sbatch": {"gpus": "4", "cpus-per-gpu": "3"}})
    assert (request.gpus_per_run, request.cpus_per_run, request.wrapper) == (None, None, "box")
    assert request.sbatch == {"gres": "disk:1", "gpus": "4", "cpus-per-gpu": "3"}
    assert Request(sbatch={"gpus": "4"}).over({"gpus_per_run": 0}) == Request(gpus_per_run=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('partitoin = "gpu"', "unknown key 'partitoin': did you mean partition"),
        ("partition = 3", "partition must be text in quotes, not 3"),
        ('setup = "module load"', "setup must be a list"),
        ("partition", "can't be read as TOML"),
        ('time = "soon"', "slurm.toml: time: 'soon' is not a time limit"),
        ("gpus_per_run = true", "gpus-per-run must be a whole number"),
        ('wrapper = ["apptainer", "exec"]', "wrapper must be text in quotes"),
        ("gpus_per_run = 1\n[sbatch]\ngpus = 2", "slurm.toml: sbatch: gpus-per-run and gpus both ask for GPUs"),
    ],
)
def test_a_wrong_defaults_file_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "slurm.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        slurm_request.defaults({"ABLATE_CONFIG": str(path)})
    with pytest.raises(UserError, match="ABLATE_CONFIG=.*: there is no such file"):
        slurm_request.defaults({"ABLATE_CONFIG": str(tmp_path / "other")})


def write(plan, out, request=Request(), **options):  # noqa: B008  (frozen)
    return slurm.submit(plan, out, request, dry_run=True, **options)


def program(folder, name, text):
    """One of Slurm's commands that does what the text says, first on the PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm_here(tmp_path_factory, monkeypatch):
    """A Slurm that takes every job and has GPUs in its partition `gpu` alone. Returns the folder of its commands."""
    folder = tmp_path_factory.mktemp("bin")
    program(folder, "sbatch", "echo 7")
    program(
        folder,
        "sinfo",
        r"""printf 'cpu* (null)\ngpu gpu:a100:4(S:0-1)\n' | { case "$*" in
        *--partition=*) grep "^${3#--partition=} ";; *) cat;; esac; }""",
    )
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_the_storages_password_is_in_a_file_of_its_owner_alone(make_plan, tmp_path, slurm_here):
    url = f"sqlite:///{tmp_path}/hunter2.db"
    done = slurm.submit(make_plan(), tmp_path / "out", Request(), storage_url=url)
    holders = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "hunter2" in path.read_text()]
    assert holders == [done.script.parent / "storage"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert storage_of(tmp_path / "out" / "balance") == url
    assert done.job == "7" and done.script.read_text() == done.text
    assert json.loads((done.script.parent / "job.json").read_text())["plan"]["name"] == "balance"


def test_the_script_is_shell_whatever_it_is_told(make_plan, tmp_path):
    request = Request(partition="a b;'c", sbatch={"comment": '$(touch x) `y` "z" # \\n'}, setup=["module load cuda"])
    done = write(make_plan(), tmp_path / "it's 50% #1", request)
    assert subprocess.run(["bash", "-n"], input=done.text, text=True).returncode == 0
    assert "50%% #1/balance/slurm/1/log-%A_%a.txt" in done.text and "\nmodule load cuda\n" in done.text
    assert "#SBATCH --array=0-3\n" in done.text and (done.tasks, done.runs) == (4, 4)
    body = [line for line in done.text.splitlines() if not line.startswith("#")]
    assert not any("touch x" in line for line in body)


def test_a_dry_run_writes_nothing(make_plan, tmp_path, slurm_here):
    assert write(make_plan(), tmp_path / "out").script.parts[-3:] == ("slurm", "1", "job.sbatch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "settings", "gres", "said"),
    [
        (Request(partition="gpu"), (), "gpu:1", "partition gpu has GPUs: one is asked for each run"),
        (Request(partition="gpu", gpus_per_run=2), (), "gpu:2", None),
        (Request(partition="gpu", gpus_per_run=2, sbatch={"gres": "disk:9"}), (), "gpu:2,disk:9", None),
        (Request(partition="gpu", sbatch={"gres": "shard:1"}), (), "shard:1", None),
        (Request(partition="gpu", gpus_per_run=0), (), None, None),
        (Request(partition="gpu"), ("trainer.accelerator=cpu",), None, None),
        (Request(partition="gpu", sbatch={"gpus-per-task": "1"}), (), None, None),
        (Request(partition="cpu"), (), None, "no GPU is asked for: --gpus-per-run 1"),
        (Request(), (), None, "no GPU is asked for"),
    ],
)
def test_a_partition_with_gpus_gives_each_run_one(make_plan, tmp_path, slurm_here, request_, settings, gres, said):
    done = write(make_plan(overrides=settings), tmp_path, request_)
    found = [line.partition("=")[2] for line in done.text.splitlines() if line.startswith("#SBATCH --gres=")]
    assert found == ([gres] if gres else [])
    *of_gpus, of_cpus = done.notes
    assert (said is None and not of_gpus) or (said and of_gpus[0].startswith(said))
    assert of_cpus.startswith("no CPUs are asked for") and "cpus-per-task" not in done.text.partition("srun")[0]
    told = write(make_plan(overrides=settings), tmp_path, replace(request_, cpus_per_run=6))
    assert "#SBATCH --cpus-per-task=6\n" in told.text and list(told.notes) == of_gpus


def test_a_wrapper_starts_python_in_every_script(make_plan, tmp_path):
    done = write(make_plan(), tmp_path, Request(wrapper="apptainer exec --nv box.sif", setup=["module load apptainer"]))
    assert f"    apptainer exec --nv box.sif {sys.executable} -P -m sweeps.launch.task" in done.text


@pytest.mark.parametrize(
    ("setup", "status", "said"),
    [
        (["true", "export A=1", '[ "$A" = 1 ] || false'], 0, ""),
        (["module load nosuch", "touch went-on"], 1, "setup: .*failed with status 1, and the job ends"),
        (["cd /nowhere; echo $UNSET", "touch went-on"], 1, "setup: cd /nowhere: failed with status 1"),
        (["source ./inner.sh", "touch here"], 0, ""),
        (["source ./nosuch.sh", "touch went-on"], 1, r"setup: source ./nosuch.sh: failed with status 1"),
        (["module load nosuch || true", "if false; then exit 3; fi", "touch here"], 0, ""),
        (["set -eu", "touch here"], 0, ""),
        (["exit 5"], 5, ""),
    ],
)
def test_a_line_of_setup_that_fails_ends_the_job(tmp_path, setup, status, said):
    (tmp_path / "inner.sh").write_text("false\ninside() { false; true; }\ninside\ntrue\n")
    module = 'module() { false; [ "$2" = cuda ]; }'
    script = "\n".join(["#!/bin/bash", module, Request(setup=setup).setup_lines(), 'false; echo "trained $UNSET"'])
    (tmp_path / "job.sbatch").write_text(script)
    done = subprocess.run(["bash", "job.sbatch"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status and ("trained" in done.stdout) == (status == 0), done.stderr
    assert re.search(said, done.stderr) and not (tmp_path / "went-on").exists()


def test_as_many_tasks_as_wait_and_no_more_than_allowed(make_plan, tmp_path, slurm_here):
    assert write(make_plan(), tmp_path, Request(array_parallelism=3)).tasks == 3
    assert submissions(tmp_path / "balance") == []
    slurm.submit(make_plan(), tmp_path, Request())
    assert write(make_plan(), tmp_path).script.parent.name == "2"
    assert [folder.name for folder in submissions(tmp_path / "balance")] == ["1"]
    assert job_name("balance", tmp_path) != job_name("balance.quick", tmp_path)


def test_runs_over_several_devices_get_a_gpu_each(make_plan, tmp_path):
    spread = {"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2}
    plan = make_plan(overrides=[f"{key}={value}" for key, value in spread.items()], resources=Resources(devices=2))
    assert "#SBATCH --gres=gpu:2\n" in write(plan, tmp_path).text
    with pytest.raises(UserError, match="gpus-per-run: a run of balance needs 2 devices: use 2"):
        write(plan, tmp_path, Request(gpus_per_run=1))
    single = make_plan()
    assert "gres" not in write(single, tmp_path).text
    assert "#SBATCH --gres=gpu:1\n" in write(single, tmp_path, Request(gpus_per_run=1)).text


def test_without_slurm_one_line_says_so_and_nothing_is_left(make_plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Slurm isn't here: 'sbatch' is not on the PATH"):
        slurm.submit(make_plan(), tmp_path / "out", Request())
    assert not (tmp_path / "out").exists()


def test_a_refused_job_leaves_no_script(make_plan, tmp_path, monkeypatch):
    program(tmp_path, "sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="Slurm refuses the job: .*Invalid account"):
        slurm.submit(make_plan(), tmp_path / "out", Request())
    assert submissions(tmp_path / "out" / "balance") == []
