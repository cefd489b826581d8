"""What is asked of Slurm, and the script that asks it; no Slurm is needed here."""

import json
import stat
import subprocess

import pytest

from core.errors import UserError
from sweeps.launch import site, slurm
from sweeps.launch.site import Request
from sweeps.spec import Resources
from sweeps.study import job_name, storage_of, submissions


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
    assert (site.seconds(text), site.clock(text)) == (seconds, clock)


@pytest.mark.parametrize("text", ["", "0", "forever", "4 h", "-1", "4h:30", "1.5h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="time: .* is not a time limit: write 4h"):
        site.seconds(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus_per_run": 0}, "gpus-per-run must be a whole number of at least 1, not 0; leave it out"),
        ({"array_parallelism": 0}, "array-parallelism must be a whole number of at least 1"),
        ({"sbatch": {"array": "0-9"}}, "sbatch: array is set by the script itself"),
        ({"sbatch": {"time": "1"}}, "sbatch: time has an option of its own"),
        ({"sbatch": {"--mem": "1G"}}, "'--mem' is not an option's name"),
        ({"sbatch": {"comment": "a\nrm -rf /"}}, "can't stand in a batch script"),
        ({"partition": "a\n#SBATCH --array=0-999"}, "can't stand in a batch script"),
        ({"partition": ""}, "partition: it is empty"),
    ],
)
def test_impossible_requests_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        Request(**fields)


def test_options_are_key_value():
    assert site.parse_options(["mem=32G", "exclusive=", "comment=a=b"]) == {
        "mem": "32G",
        "exclusive": "",
        "comment": "a=b",
    }
    for wrong in ("mem", "--mem=3", "=3", "Mem=3"):
        with pytest.raises(UserError, match="is not an option: write key=value"):
            site.parse_options([wrong])


def test_the_command_line_goes_over_the_sites_defaults(tmp_path):
    path = tmp_path / "ablate" / "slurm.toml"
    path.parent.mkdir()
    path.write_text('partition = "gpu"\ntime = "4h"\nsetup = ["module load cuda"]\n[sbatch]\nmem = "32G"\nnice = 5\n')
    defaults = site.defaults({"XDG_CONFIG_HOME": str(tmp_path)})
    assert defaults == site.defaults({"ABLATE_CONFIG": str(path)})
    request = defaults.over({"partition": "low", "time": None, "sbatch": {"mem": "64G"}})
    assert (request.partition, request.time, request.setup) == ("low", "4h", ["module load cuda"])
    assert request.sbatch == {"mem": "64G", "nice": "5"}
    assert site.defaults({"XDG_CONFIG_HOME": str(tmp_path / "none")}) == Request()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('partitoin = "gpu"', "unknown key 'partitoin': did you mean partition"),
        ("partition = 3", "partition must be text in quotes, not 3"),
        ('setup = "module load"', "setup must be a list"),
        ("partition", "can't be read as TOML"),
        ('time = "soon"', "slurm.toml: time: 'soon' is not a time limit"),
        ("gpus_per_run = true", "gpus-per-run must be a whole number"),
    ],
)
def test_a_wrong_site_file_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "slurm.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        site.defaults({"ABLATE_CONFIG": str(path)})
    with pytest.raises(UserError, match="ABLATE_CONFIG=.*: there is no such file"):
        site.defaults({"ABLATE_CONFIG": str(tmp_path / "other")})


def write(plan, out, request=Request(), **options):  # noqa: B008  (frozen)
    return slurm.submit(plan, out, request, dry_run=True, **options)


def test_the_storages_password_is_in_a_file_of_its_owner_alone(make_plan, tmp_path):
    url = "postgresql://user:hunter2@db/runs"
    done = write(make_plan(), tmp_path, storage_url=url)
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and "hunter2" in path.read_text()]
    assert holders == [done.script.parent / "storage"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert storage_of(tmp_path / "balance") == url


def test_the_script_is_shell_whatever_it_is_told(make_plan, tmp_path):
    request = Request(partition="a b;'c", sbatch={"comment": '$(touch x) `y` "z" # \\n'}, setup=["module load cuda"])
    done = write(make_plan(), tmp_path / "it's 50% #1", request)
    text = done.script.read_text()
    assert subprocess.run(["bash", "-n", str(done.script)]).returncode == 0
    assert "50%% #1/balance/slurm/1/log-%A_%a.txt" in text and "\nmodule load cuda\n" in text
    assert "#SBATCH --array=0-3\n" in text and (done.tasks, done.runs) == (4, 4)
    body = [line for line in text.splitlines() if not line.startswith("#")]
    assert not any("touch x" in line for line in body)
    assert json.loads((done.script.parent / "job.json").read_text())["plan"]["name"] == "balance"


def test_as_many_tasks_as_wait_and_no_more_than_allowed(make_plan, tmp_path):
    assert write(make_plan(), tmp_path, Request(array_parallelism=3)).tasks == 3
    write(make_plan(), tmp_path)
    assert [folder.name for folder in submissions(tmp_path / "balance")] == ["1", "2"]
    assert job_name("balance", tmp_path) != job_name("balance.quick", tmp_path)


def test_runs_over_several_devices_get_a_gpu_each(make_plan, tmp_path):
    spread = {"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2}
    plan = make_plan(overrides=[f"{key}={value}" for key, value in spread.items()], resources=Resources(devices=2))
    assert "#SBATCH --gres=gpu:2\n" in write(plan, tmp_path).script.read_text()
    with pytest.raises(UserError, match="gpus-per-run: a run of balance needs 2 devices: use 2"):
        write(plan, tmp_path, Request(gpus_per_run=1))
    single = make_plan()
    assert "gres" not in write(single, tmp_path).script.read_text()
    assert "#SBATCH --gres=gpu:1\n" in write(single, tmp_path, Request(gpus_per_run=1)).script.read_text()


def test_without_slurm_one_line_says_so_and_nothing_is_left(make_plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Slurm isn't here: 'sbatch' is not on the PATH"):
        slurm.submit(make_plan(), tmp_path / "out", Request())
    assert not (tmp_path / "out").exists()


def test_a_refused_job_leaves_no_script(make_plan, tmp_path, monkeypatch):
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="Slurm refuses the job: .*Invalid account"):
        slurm.submit(make_plan(), tmp_path / "out", Request())
    assert submissions(tmp_path / "out" / "balance") == []
