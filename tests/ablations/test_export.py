"""`confirm` and `export`: nothing is called best before fresh seeds say so, and what is exported can be trained."""

import json
import random
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.config.loading import load
from core.config.model import RouterConfig
from core.config.presets import preset
from core.config.run import RunConfig, config_hash, to_yaml
from core.config.stages import load_stages
from core.data.shards import write_shards
from core.data.tokenizers import Vocabulary
from core.records.designs import Design
from core.training.dry_run import dry_run
from sweeps.runs.folders import run_folder, write_design
from sweeps.spec import Factor
from sweeps.studies.resolve import confirmation_plan, fresh_seeds, plan
from tests.ablations.shell import ablate, mistake
from tests.sweeps.conftest import SMALL, declare
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
        record = record_of(run.config, planned.study_field(run))
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
    design = Design.read(folder / "runs" / "toy" / "design.json")
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


CLUSTER = ("--cluster", "64xH100-80G")
TARGET = ("--target", "llada_moe_7b_a1b", *CLUSTER)


def leave_shards(folder: Path, tokens: int, vocabulary: int) -> list[str]:
    """Token shards, and the settings that learn from them."""
    ids_T = np.zeros(tokens, dtype=np.uint32)
    write_shards(folder, ids_T, ids_T[:65536], Vocabulary(vocabulary), None)
    return [f"data.corpus=tokens:{folder}", "data.validation_sequences=8"]


def test_the_winner_at_full_scale_is_a_folder_that_can_be_trained(confirmed) -> None:
    fed = leave_shards(confirmed / "shards", 500_000, 156_800)
    done = ablate("export", "toy.py", *TARGET, "--tokens", "200M", *fed, cwd=confirmed)
    assert done.returncode == 0, done.stderr
    folder = confirmed / "runs" / "toy" / "export" / "llada_moe_7b_a1b"
    config = load(folder / "config.yaml")
    assert config.model == preset("llada_moe_7b_a1b").model and config.objective.load_balancing_weight == 0.0
    assert 2e8 <= dry_run(config, 64).tokens < 2e8 + config.tokens_per_step
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
    in_stages = ("train", str(folder / "stages.yaml"), *CLUSTER, "--dry-run")
    mistake(ablate(*in_stages, cwd=confirmed), "stage pretrain-2: data.corpus is still to be named")
    named = ("--stage", "anneal-2", "trainer.steps=40")
    done = ablate(*in_stages, *fed, *named, "optimizer.warmup_steps=0", cwd=confirmed)
    assert done.returncode == 0 and "stage 4/4, anneal-2" in done.stdout, done.stderr
    mistake(ablate(*in_stages, *fed, "--stage", "pretrain-2", cwd=confirmed), "stage pretrain-1: data.corpus=tokens")

    checked = ablate("train", str(folder), *CLUSTER, "--dry-run", cwd=confirmed)
    assert checked.returncode == 0, checked.stderr
    assert "7,356,880,896 parameters" in checked.stdout and "every check passed" in checked.stdout
    assert "64xH100-80G, predicted" in checked.stdout
    card = (folder / "CARD.md").read_text()
    assert "7,356,880,896 parameters, 1,397,823,488 of them active per token, as llada_moe_7b_a1b itself." in card
    assert "| `objective.load_balancing_weight` | `0.01` | `0.0` | as it is |" in card
    reasons = {entry["key"]: entry["why"] for entry in told["full_scale"]["changed"]}
    assert reasons["trainer.steps"] == "--tokens 200M" and reasons["data.corpus"] == "set on the command line"
    assert reasons["trainer.strategy"] == "laid out for 64xH100-80G"


EXPERTS, CHOSEN = "model.num_experts", "model.top_k"
GRANULARITY = {
    "question": "How many experts of how many?",
    "factors": (Factor(EXPERTS, (4, 8)), Factor(CHOSEN, (1, 2)), Factor("optimizer.learning_rate", (1e-3, 4e-3))),
    "control": {EXPERTS: 8, CHOSEN: 2, "optimizer.learning_rate": 4e-3},
    "arms": "one_at_a_time",
    "seeds": range(5),
    "settings": {key: value for key, value in SMALL.items() if key != EXPERTS},
}


@pytest.fixture
def granularity(tmp_path) -> Path:
    """An ablation of the target's own shape; its control has the activation ratio 2 / 8, the target 8 / 64."""
    source = DECLARATION.replace('seeds=range(5), arms="all"', "**GRANULARITY")
    (tmp_path / "toy.py").write_text(
        source.replace("import declare", "import declare\nfrom tests.ablations.test_export import GRANULARITY")
    )
    return tmp_path


@pytest.mark.parametrize("cluster", ["64xH100-80G", "8xH200-141G"])
def test_no_detectable_difference_exports_the_target_itself(granularity, cluster) -> None:
    leave_records(plan("toy", declare(**GRANULARITY)), granularity / "runs", 0.0)
    where = ("--to", "e", "--target", "llada_moe_7b_a1b", "--cluster", cluster)
    done = ablate("export", "toy.py", *where, cwd=granularity)
    assert done.returncode == 0 and "Nothing decided: the target's own values stay" in done.stdout, done.stderr
    config, own = load(granularity / "e" / "config.yaml"), preset("llada_moe_7b_a1b")
    assert (config.model, config.objective, config.optimizer) == (own.model, own.objective, own.optimizer)
    assert (config.trainer.steps, config.trainer.batch_size) == (own.trainer.steps, own.trainer.batch_size)
    told = json.loads((granularity / "e" / "evidence.json").read_text())["full_scale"]
    assert told["carried"] == [] and told["parameters"]["here"] == told["parameters"]["target"]
    laid_out = {"trainer.checkpoint_every", "trainer.accumulate", "trainer.activation_checkpointing"}
    assert all(
        c["key"].startswith("deepspeed.") or c["key"] in laid_out | {"trainer.strategy"} for c in told["changed"]
    )
    card = (granularity / "e" / "CARD.md").read_text()
    assert "7,356,880,896 parameters" in card and "Nothing decided" in card

    assert (
        "note: The dry run will refuse it: data.corpus=stdlib with data.tokenizer=bytes has 259 token ids"
        in done.stdout
    )
    refused = ablate("train", "e", "--cluster", cluster, "--dry-run", cwd=granularity)
    mistake(refused, "data.tokenizer=bytes has 259 token ids", "157,184", "data.tokenizer=PATH")
    few = leave_shards(granularity / "few", 500_000, 156_800)
    refused = ablate("train", "e", "--cluster", cluster, "--dry-run", *few, cwd=granularity)
    mistake(refused, "has 500k tokens to learn from, and 105G are to be seen", "each 210k times")


def test_a_winner_carries_what_it_has_unlike_the_control_and_an_arm_by_hand_all_of_it(granularity) -> None:
    planned = plan("toy", declare(**GRANULARITY))
    leave_records(planned, granularity / "runs", 0.0)
    for run in planned.runs:  # the lower rate is better
        if run.config.optimizer.learning_rate == 1e-3:
            record = record_of(run.config, planned.study_field(run))
            value = 1.0 + run.seed + random.Random(run.run_hash).gauss(0, 1e-3)
            overwrite(replace(record, metrics={"val/nelbo": value}), run_folder(planned, run, granularity / "runs"))
    export = ("export", "toy.py", *TARGET, "--rule", "none", "--to")
    done = ablate(*export, "w", "--force", cwd=granularity)
    assert done.returncode == 0, done.stderr
    config, own = load(granularity / "w" / "config.yaml"), preset("llada_moe_7b_a1b")
    assert config.model == own.model and config.optimizer == replace(own.optimizer, learning_rate=1e-3)
    [carried] = json.loads((granularity / "w" / "evidence.json").read_text())["full_scale"]["carried"]
    assert carried["key"] == "optimizer.learning_rate"
    by_hand = ablate(*export, "h", "--arm", planned.runs[0].arm, cwd=granularity)
    assert by_hand.returncode == 0, by_hand.stderr
    assert load(granularity / "h" / "config.yaml").model.top_k == 16
    card = (granularity / "h" / "CARD.md").read_text()
    assert "of an arm that was chosen by hand" in card and "llada_moe_7b_a1b itself: 7,356,880,896" in card


def test_a_site_puts_python_into_its_container_and_leaves_gpus_to_the_cluster(confirmed, monkeypatch) -> None:
    wrapper = 'wrapper = "apptainer exec --nv box.sif"'
    (confirmed / "site.toml").write_text(f'{wrapper}\ncpus_per_run = 6\nsetup = ["false"]\n[sbatch]\ngres = "gpu:1"\n')
    monkeypatch.setenv("ABLATE_CONFIG", str(confirmed / "site.toml"))
    assert ablate("export", "toy.py", *TARGET, "--to", "e", cwd=confirmed).returncode == 0
    script = (confirmed / "e" / "train.sbatch").read_text()
    assert script.count("apptainer exec --nv box.sif /") == 2 and "#SBATCH --cpus-per-task=6\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script and "gres" not in script
    done = subprocess.run(["bash", confirmed / "e" / "train.sbatch"], capture_output=True, text=True)
    assert done.returncode == 1 and "setup: false: failed with status 1, and the job ends" in done.stderr


def test_the_winner_for_another_trainer_names_what_is_lost(confirmed) -> None:
    done = ablate("export", "toy.py", "--format", "megatron", cwd=confirmed)
    assert done.returncode == 0, done.stderr
    assert "not expressed: model.causal=False: attention is causal there" in done.stdout
    assert "not run here" in done.stdout and "start it: MEGATRON=" in done.stdout
    folder = confirmed / "runs" / "toy" / "export" / "megatron"
    assert "--moe-router-load-balancing-type none" in (folder / "megatron.sh").read_text()
    assert json.loads((folder / "evidence.json").read_text())["evidence"]["confirmed"] is True
    # A config in the place of a run's folder, and a model that can't be said.
    done = ablate("export", str(folder), "--format", "torchtitan", "--to", "t", cwd=confirmed)
    assert done.returncode == 0 and (confirmed / "t" / "torchtitan.toml").is_file(), done.stderr
    config = replace_router(load(folder / "config.yaml"), "film")
    (folder / "config.yaml").write_text(to_yaml(config))
    mistake(ablate("export", str(folder), "--format", "olmo-core", cwd=confirmed), "model.router.kind=film")
    assert not (folder / "olmo-core").exists()


def replace_router(config: RunConfig, kind: str) -> RunConfig:
    return replace(config, model=replace(config.model, router=RouterConfig(kind=kind)))


def test_the_target_for_another_trainer_is_beside_its_own_config(confirmed) -> None:
    done = ablate("export", "toy.py", *TARGET, "--format", "torchtitan", "--to", "e", cwd=confirmed)
    assert done.returncode == 0, done.stderr
    assert "not expressed: objective.z_loss_weight=0.001" in done.stdout
    training = tomllib.loads((confirmed / "e" / "torchtitan.toml").read_text())["training"]
    trainer = load(confirmed / "e" / "config.yaml").trainer
    assert training["local_batch_size"] == trainer.batch_size // trainer.accumulate // 64
    assert training["global_batch_size"] == trainer.batch_size


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
