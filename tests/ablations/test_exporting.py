"""`confirm` and `export`: nothing is called best before fresh seeds say so, and what is exported can be trained."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import config_hash
from core.presets import preset
from core.settings import load
from core.stages import load_stages
from core.training.dry_run import dry_run
from sweeps.confirmation import confirmation_plan, fresh_seeds
from sweeps.folders import run_folder, write_design
from sweeps.plan import plan
from tests.ablations.shell import ablate, mistake
from tests.sweeps.conftest import declare
from tests.sweeps.trainers import overwrite, record_of

DECLARATION = '''
"""Declared in tests."""
from tests.sweeps.conftest import declare

ablation = declare(seeds=range(5), arms="all")
'''
BEST = "load_balancing_weight=0"


def leave_records(planned, out: Path, per_weight: float) -> None:
    """A record of each run, in which the loss's weight makes the NELBO worse."""
    for run in planned.runs:
        folder = run_folder(planned, run, out)
        record = record_of(run.config, planned.place(run))
        noise = random.Random(config_hash(run.config)).gauss(0, 1e-3)
        value = 2.0 + run.seed + per_weight * run.config.objective.load_balancing_weight + noise
        overwrite(replace(record, metrics={"val/nelbo": value}), folder)
    write_design(out / planned.study_name, planned.design)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    (folder / "toy.py").write_text(DECLARATION)
    leave_records(plan("toy", declare(seeds=range(5))), folder / "runs", 10.0)
    return folder


@pytest.fixture
def confirmed(swept, tmp_path) -> Path:
    """The same with the confirmation's runs recorded, which say the same."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    leave_confirmation(tmp_path, 10.0)
    return tmp_path


def leave_confirmation(folder: Path, per_weight: float) -> None:
    design = json.loads((folder / "runs" / "toy" / "design.json").read_text())
    planned = confirmation_plan(
        "toy", declare(seeds=range(5)), design, BEST, fresh_seeds(design, 5), "ablate confirm toy.py"
    )
    leave_records(planned, folder / "runs", per_weight)


def test_a_winner_is_not_exported_before_fresh_seeds_confirm_it(swept, tmp_path) -> None:
    mistake(ablate("export", "toy.py", cwd=swept), "was not trained on fresh seeds", "ablate confirm toy.py", "--force")
    done = ablate("export", "toy.py", "--force", "--to", str(tmp_path / "e"), cwd=swept)
    assert done.returncode == 0 and "UNCONFIRMED" in done.stdout
    assert "UNCONFIRMED" in (tmp_path / "e" / "CARD.md").read_text()
    told = json.loads((tmp_path / "e" / "evidence.json").read_text())
    assert told["evidence"]["confirmed"] is False


def test_a_confirmed_winner_is_exported_with_what_the_fresh_seeds_said(confirmed) -> None:
    done = ablate("confirm", "toy.py", cwd=confirmed)  # all is recorded: nothing is trained
    assert done.returncode == 0, done.stderr
    assert f"{BEST} is confirmed on 5 fresh seeds: -0.1" in done.stdout
    assert (confirmed / "runs" / "toy.full.confirm" / "report.html").is_file()
    done = ablate("export", "toy.py", cwd=confirmed)
    assert done.returncode == 0 and "is confirmed on 5 fresh seeds" in done.stdout
    told = json.loads((confirmed / "runs" / "toy" / "export" / "evidence.json").read_text())["evidence"]
    assert told["confirmed"] is True and told["confirmation"]["counts"]["complete"] == 10
    assert "not yet confirmed" not in told["winner_reason"]


def test_fresh_seeds_that_say_otherwise_confirm_nothing(swept, tmp_path) -> None:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    leave_confirmation(tmp_path, 0.0)
    done = ablate("confirm", "toy.py", cwd=tmp_path)
    assert f"{BEST} is not confirmed: on fresh seeds it is: no detectable difference" in done.stdout
    mistake(ablate("export", "toy.py", cwd=tmp_path), f"{BEST} is not confirmed", "--force")


def test_a_control_that_stands_and_an_arm_by_hand_need_no_confirmation(swept, tmp_path) -> None:
    done = ablate("export", "toy.py", "--arm", "load_balancing_weight=0.01", "--to", str(tmp_path / "e"), cwd=swept)
    assert done.returncode == 0 and "by hand" in done.stdout
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    leave_records(plan("toy", declare(seeds=range(5))), tmp_path / "runs", 0.0)
    mistake(ablate("confirm", "toy.py", cwd=tmp_path), "there is no winner to confirm", "the control stands")
    assert ablate("export", "toy.py", cwd=tmp_path).returncode == 0


def test_the_winner_at_full_scale_is_a_folder_that_can_be_trained(confirmed) -> None:
    done = ablate(
        "export", "toy.py", "--target", "llada_moe_7b_a1b", "--cluster", "64xH100-80G", "--tokens", "2T", cwd=confirmed
    )
    assert done.returncode == 0, done.stderr
    folder = confirmed / "runs" / "toy" / "export" / "llada_moe_7b_a1b"
    config = load(folder / "config.yaml")
    assert config.model == preset("llada_moe_7b_a1b").model and config.objective.load_balancing_weight == 0.0
    assert 2e12 <= dry_run(config, 64).tokens < 2e12 + config.tokens_per_step
    engine = json.loads((folder / "deepspeed.json").read_text())
    micro = config.trainer.batch_size // (64 * config.trainer.accumulate)
    assert engine["train_micro_batch_size_per_gpu"] == micro
    assert engine["zero_optimization"]["stage"] == config.deepspeed.stage
    assert json.loads((folder / "hf" / "config.json").read_text())["num_experts"] == 64
    script = (folder / "train.sbatch").read_text()
    assert "#SBATCH --nodes=8\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    told = json.loads((folder / "evidence.json").read_text())
    assert told["evidence"]["confirmed"] is True
    assert told["full_scale"]["extrapolated"]["active"]["target"] == 1_397_823_488
    assert told["full_scale"]["predicted"]["gpu_hours"] == pytest.approx(
        64 * 24 * told["full_scale"]["predicted"]["days"]
    )
    [carried] = [c for c in told["full_scale"]["carried"] if c["key"].startswith("objective.")]
    assert carried == {"key": "objective.load_balancing_weight", "proxy": 0.0, "target": 0.0, "how": "as it is"}
    assert "64xH100-80G" in (folder / "CARD.md").read_text()
    stages = load_stages(folder / "stages.yaml")
    assert [stage.name for stage in stages] == ["pretrain-1", "pretrain-2", "anneal-1", "anneal-2", "sft"]
    assert {stage.config.objective.load_balancing_weight for stage in stages} == {0.0}
    assert stages[3].config.data.sequence_length == 8192 and stages[2].config.model.rope_theta == 5e4
    unnamed = ablate("train", str(folder / "stages.yaml"), "--cluster", "64xH100-80G", "--dry-run", cwd=confirmed)
    mistake(unnamed, "stage pretrain-1: data.corpus is still to be named")
    named = ("data.corpus=stdlib", "--stage", "anneal-2")
    done = ablate("train", str(folder / "stages.yaml"), *named, "--cluster", "64xH100-80G", "--dry-run", cwd=confirmed)
    assert done.returncode == 0 and "stage 4/4, anneal-2" in done.stdout, done.stderr

    checked = ablate("train", str(folder), "--cluster", "64xH100-80G", "--dry-run", cwd=confirmed)
    assert checked.returncode == 0, checked.stderr
    assert "7,356,880,896 parameters" in checked.stdout and "every check passed" in checked.stdout
    assert "64xH100-80G, predicted" in checked.stdout


def test_settings_of_ones_own_and_mistakes_at_full_scale(confirmed, tmp_path) -> None:
    base = ("export", "toy.py", "--target", "proxy_1m", "--to", str(tmp_path / "f"))
    done = ablate(*base, "--cluster", "2xH100-80G", "objective.load_balancing_weight=0.05", cwd=confirmed)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "f" / "config.yaml").objective.load_balancing_weight == 0.05
    for options, said in (
        ((), "--target needs --cluster"),
        (("--cluster", "2xH10-80G"), "unknown device 'H10-80G'"),
        (("--cluster", "2xH100-80G", "--tokens", "many"), "'many' is not a number of tokens"),
        (("--cluster", "2xH100-80G", "--rule", "magic"), "unknown rule 'magic'"),
        (("--cluster", "2xH100-80G", "trainer.batch_size=7"), "trainer.batch_size=7"),
    ):
        mistake(ablate(*base, *options, cwd=confirmed), said)
    mistake(ablate("export", "toy.py", "--cluster", "2xH100-80G", cwd=confirmed), "add --target")
    mistake(ablate("export", "toy.py", "trainer.steps=3", cwd=confirmed), "add --target")
    mistake(ablate("train", "tiny", "--cluster", "2xH100-80G", cwd=confirmed), "--dry-run")
