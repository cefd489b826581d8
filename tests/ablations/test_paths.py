"""Paths as people write them, and commands that leave nothing behind."""

import json
import shlex
from pathlib import Path

import pytest

from ablations.__main__ import parse
from core.config.loading import build
from core.config.presets import preset
from core.config.run import to_dict
from core.errors import UserError
from core.records.pending_record import spill_path
from core.training.checks import check
from core.training.deepspeed_config import engine_config
from core.training.seals import key_file
from core.training.weights import starting_weights
from sweeps.studies.resolve import plan
from tests.ablations.shell import ablate, mistake
from tests.ablations.test_export import DECLARATION, leave_records
from tests.core.training.test_run import QUICK
from tests.sweeps.conftest import declare

SEARCH = """
from sweeps.spec import Budget, Log, Search
from tests.sweeps.conftest import SMALL

search = Search(
    question="Which rate?", space={"optimizer.learning_rate": Log(1e-4, 1e-2)}, base="tiny", settings=SMALL,
    budget=Budget(trials=4), seeds=range(1), confirm=5,
)
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("run balance --out=~/x", "out"),
        ("run balance --out ~/x", "out"),
        ("export balance --to ~/x", "to"),
        ("export balance --target ~/x", "target"),
        ("export balance --cluster ~/x", "cluster"),
        ("report balance --files ~/x", "files"),
        ("run ~/x", "name"),
        ("train ~/x", "config"),
        ("train tiny --dry-run --cluster ~/x", "cluster"),
        ("describe ~/x", "config"),
        ("layout ~/x --cluster H100-80G", "config"),
        ("layout tiny --cluster ~/x", "cluster"),
        ("layout tiny --cluster H100-80G --calibrate ~/x", "calibrate"),
        ("probe routing ~/x", "name"),
        ("sample ~/x", "model"),
        ("sample m --tokenizer ~/x", "tokenizer"),
        ("sample m --trace ~/x", "trace"),
        ("bench text m --judge ~/x", "judge"),
        ("bench lm-eval m --include-path ~/x", "include_path"),
        ("bench lm-eval m --to ~/x", "to"),
        ("import hf ~/x", "path"),
        ("import hf m --to ~/x", "to"),
        ("data tokenize stdlib --to ~/x", "to"),
    ],
)
def test_a_home_folder_is_one_wherever_a_path_is_taken(home, command, name) -> None:
    assert str(getattr(parse(shlex.split(command)), name)) == f"{home}/x"
    with pytest.raises(UserError, match="'~nosuchperson' is nobody's home folder"):
        parse(shlex.split(command.replace("~", "~nosuchperson")))


def test_a_prompt_is_no_path() -> None:
    assert parse(["sample", "m", "--prompt", "~/x"]).prompt == ["~/x"]


def test_a_home_folder_in_configs_and_variables(home, monkeypatch) -> None:
    (home / "ds.json").write_text(json.dumps({"steps_per_print": 7}))
    spread = build(QUICK, {"trainer.strategy": "deepspeed", "deepspeed.json": "~/ds.json"})
    assert engine_config(spread, 1)["steps_per_print"] == 7
    from_weights = build(to_dict(preset("tiny")), {"trainer.initial_weights": "~/w.safetensors"})
    assert starting_weights(from_weights, Path()) == f"{home}/w.safetensors"
    with pytest.raises(UserError, match=f"{home}/w.safetensors can't be read"):
        check(from_weights)
    monkeypatch.setenv("ABLATE_KEY_FILE", "~/key")
    monkeypatch.setenv("ABLATE_SPILL", "~/spill")
    assert key_file() == home / "key" and spill_path(Path("x")).parent == home / "spill"
    monkeypatch.delenv("ABLATE_KEY_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", "~/config")
    assert key_file() == home / "config" / "ablate" / "checkpoints.key"


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def test_plans_and_dry_runs_leave_nothing_behind(home, tmp_path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("fonts")))  # that library's own cache
    (tmp_path / "toy.py").write_text(DECLARATION)
    (tmp_path / "search.py").write_text(SEARCH)
    slurm = ("--launcher", "slurm", "--dry-run")
    commands = [
        ("run", "toy.py", *slurm),
        ("run", "toy.py", "--until-decided", *slurm),
        ("run", "search.py", *slurm),
        ("plan", "toy.py"),
        ("plan", "search.py"),
        ("train", "tiny", "--dry-run"),
        (
            "train",
            "tiny",
            "--cluster",
            "1xH100-80G",
            "--dry-run",
            "trainer.strategy=deepspeed",
            "trainer.precision=bf16",
        ),
        ("layout", "tiny", "--cluster", "1xH100-80G"),
        ("describe", "tiny"),
    ]
    recorded = [
        ("run", "toy.py", *slurm),
        ("run", "toy.py", "--retry-failed", *slurm),
        ("run", "toy.py", "--until-decided", *slurm),
        ("retry", "toy.py", *slurm),
        ("confirm", "toy.py", *slurm),
        ("plan", "toy.py", "--no-calibration"),
    ]
    before = files(tmp_path)
    for command in commands:
        done = ablate(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert files(tmp_path) == before, command
    planned = plan("toy", declare(seeds=range(5)))
    leave_records(planned, tmp_path / "runs", 10.0)
    before = files(tmp_path)
    for command in recorded:
        done = ablate(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert files(tmp_path) == before, command


def test_what_a_dry_run_shows_is_what_would_be_submitted(tmp_path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    run = ("run", "toy.py", "--launcher", "slurm", "--dry-run")
    done = ablate(*run, "--gpus-per-run", "2", "--cpus-per-run", "6", cwd=tmp_path)
    assert "#SBATCH --gres=gpu:2\n" in done.stdout and "#SBATCH --cpus-per-task=6\n" in done.stdout
    assert (
        "not submitted, and nothing is written: 10 runs, 10 array tasks" in done.stderr and "note:" not in done.stderr
    )
    bare = ablate(*run, cwd=tmp_path).stderr
    assert "note: no GPU is asked for: --gpus-per-run 1" in bare and "note: no CPUs are asked for" in bare
    both = ablate(*run, "--gpus-per-run", "2", "--sbatch", "gpus-per-node=4", cwd=tmp_path)
    mistake(both, "gpus-per-run and gpus-per-node both ask for GPUs; leave one of them out")
    mistake(
        ablate("run", "toy.py", "--gpus-per-run", "0", cwd=tmp_path),
        "--gpus-per-run is an option of --launcher ray or slurm",
    )


@pytest.mark.parametrize(
    "command",
    [
        "data tokenize text:a.txt --to",
        "export toy.py --to",
        "import hf a --to",
        "report toy.py --files",
        "train tiny --out",
        "data tokenize text:a.txt --out",
    ],
)
@pytest.mark.parametrize("place", ["a.txt", "a.txt/inner"])
def test_a_file_in_the_place_of_a_folder_is_refused_before_any_work(tmp_path, command, place) -> None:
    (tmp_path / "a.txt").write_text("text")
    option = command.split()[-1]
    mistake(ablate(*command.split(), place, cwd=tmp_path), f"{option} {place}: a.txt is no folder: name another")
