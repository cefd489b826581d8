"""Recipes as arms: equal training FLOPs, first stages inside the runs that start from them."""

import json
from dataclasses import replace

import pytest

from analysis.study import Study
from core.config.loading import build, load
from core.config.presets import Recipe, recipes
from core.config.run import config_hash
from core.errors import UserError
from core.model.flops import training_flops
from core.records import run_record
from core.training.run import train
from sweeps.export.arm import export
from sweeps.launch.worker import StopSignal, Worker
from sweeps.runs.cost import calibrate
from sweeps.runs.folders import recorded, run_folder
from sweeps.runs.ledger import Ledger
from sweeps.runs.record_checks import first_stage, read_runs
from sweeps.storage.storage import default_url, open_storage
from sweeps.studies.ablation import Ablation
from sweeps.studies.factors import Factor
from sweeps.studies.plan import Plan
from sweeps.studies.recipes import Recipes
from sweeps.studies.resolve import plan
from tests.sweeps import trainers
from tests.sweeps.conftest import SMALL

LONG = {"trainer.steps": 400, "optimizer.warmup_steps": 2}
DENSE = {"model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0, "model.dense_width": 16}
CAUSAL = DENSE | {"model.causal": True, "objective.kind": "autoregressive"}
FEW = {"control": Recipe({}, "here"), "staged": Recipe(DENSE | {"model.shifted": True}, "here", first=CAUSAL)}


def declared(**changes) -> Ablation:
    fields = {"question": "Which?", "base": "tiny", "settings": SMALL | LONG, "seeds": (0, 1), "recipes": FEW}
    return Ablation(**(fields | changes))


def test_every_system_costs_the_controls_flops_first_stage_included() -> None:
    base = build(SMALL, LONG)
    made = Recipes(recipes(base)).resolve(declared().shared({}))
    assert [each.arm.label for each in made] == list(recipes(base))
    for each in made:
        spent = training_flops(each.config) + (training_flops(each.first) if each.first else 0)
        assert spent == each.flops == pytest.approx(training_flops(made[0].config), rel=0.01)
    assert {each.arm.label for each in made if each.first} == {"Dream", "LLaDA 1.5"}


def test_a_plan_of_recipes_says_what_each_is_and_survives_its_journey() -> None:
    made = plan("toy", declared())
    control, arm = made.design.arms
    assert (control.name, arm.name, arm.label) == ("control", "staged", "staged")
    assert "steps of a first stage (autoregressive), then" in arm.notes[-1]
    assert arm.flops == pytest.approx(control.flops, rel=0.01)
    run = made.runs[1]
    assert run.first is not None and run.first.seed == run.seed == 0 and made.runs[3].first.seed == 1
    assert run.config.trainer.initial_weights == f"stage:{config_hash(run.first, with_seed=False)}"
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
    cost = calibrate(made, measure=lambda config: 1.0)
    assert cost["staged"] > run.config.trainer.steps + run.first.trainer.steps


def test_a_worker_trains_the_first_stage_once_and_starts_from_it(tmp_path) -> None:
    brief = declared(seeds=(0,), settings=SMALL | {"trainer.steps": 60, "trainer.batch_size": 2})
    made, trained = plan("toy", brief), []
    ledger = Ledger(made, tmp_path, open_storage(default_url(tmp_path)))
    ledger.reconcile()

    def seen(config, folder, **rest):
        trained.append((config.objective.kind, folder.relative_to(tmp_path).parts[1]))
        if len(trained) == 3 and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            raise RuntimeError("torn away")
        return train(config, folder, **rest)

    Worker(ledger, seen, lambda **event: None, StopSignal()).work()
    run = made.runs[1]
    folder = run_folder(made, run, tmp_path)
    assert recorded(folder, run).reason == "RuntimeError: torn away"
    ledger.reconcile(retry_failed=True)
    Worker(ledger, seen, lambda **event: None, StopSignal()).work()
    kinds = [kind for kind, arm in trained if arm == "staged"]
    assert kinds == ["autoregressive", "masked_diffusion", "masked_diffusion"]  # the first stage isn't trained again
    record = recorded(folder, run)
    assert record.status == "complete" and record.config["trainer"]["initial_weights"].startswith("stage:")
    stage = run_record.read(next(folder.glob("stages/*/record.json")))
    assert stage.status == "complete" and stage.config["objective"]["kind"] == "autoregressive"
    assert record.curve["train/nelbo"][0] < 5.4 < stage.curve["train/nelbo"][0]
    assert record.before == {"flops": stage.flops, "tokens": stage.tokens, "wall_time_s": stage.wall_time_s}
    assert stage.flops == training_flops(run.first) > 0 and stage.before == {}
    assert record.flops == made.design.arms[1].flops == training_flops(run.first) + training_flops(run.config)
    own = run.config.tokens_per_step * run.config.trainer.steps
    assert record.validation["tokens"][-1] == own and record.tokens == own + stage.validation["tokens"][-1]
    tokens_T, _ = Study.load(tmp_path / "toy", made.design).series("staged", "validation", "val/nelbo")[0]
    assert tokens_T[-1] == record.tokens and tokens_T[0] > stage.tokens
    [whole] = [one for one in read_runs(tmp_path / "toy", []) if one.record.before]
    assert list(first_stage(whole, "here")) == []
    path = next(folder.glob("stages/*/record.json"))
    for change, said in (
        ({"flops": 1.0}, "its run counts"), ({"seed": 7}, "isn't the first stage"), ({"status": "failed"}, "it is failed"),
        ({"config": stage.config | {"seed": 3}}, "doesn't hash to its run hash"),
    ):  # fmt: skip
        path.write_text(json.dumps(json.loads(stage.to_json()) | change))
        assert said in "; ".join(finding.text for finding in first_stage(whole, "here"))
    path.write_text(stage.to_json())
    former = replace(whole, record=replace(record, before={}))
    assert [(one.note, "by an earlier version" in one.text) for one in first_stage(former, "here")] == [(True, True)]
    (path.parent / "model.safetensors").write_bytes(b"")
    assert ["isn't the file that was trained" in one.text for one in first_stage(whole, "here")] == [True]
    path.unlink()
    assert [one.text for one in first_stage(whole, "here")] == ["the record of its first stage is gone"]
    findings: list = []
    assert len(list(read_runs(tmp_path / "toy", findings))) == 2 and findings == []


def test_a_first_stage_that_fails_is_the_runs_failure(tmp_path) -> None:
    made = plan("toy", declared(seeds=(1,)))
    ledger = Ledger(made, tmp_path, open_storage(default_url(tmp_path)))
    ledger.reconcile()

    def train_or_fail(config, folder, **rest):
        record = trainers.quick(config, folder, **rest)
        broken = config.objective.kind == "autoregressive"
        return replace(record, status="failed", reason="no heat") if broken else record

    Worker(ledger, train_or_fail, lambda **event: None, StopSignal()).work()
    found = recorded(run_folder(made, made.runs[1], tmp_path), made.runs[1])
    assert (found.status, found.reason) == ("failed", "its first stage failed: no heat")


def test_an_export_has_the_first_stages_config_too(tmp_path) -> None:
    made = plan("toy", declared())
    run = made.runs[1]
    record = trainers.quick(run.config, tmp_path / "run", study=made.study_field(run))
    export(made.design, "staged", [record], {}, tmp_path / "export")
    assert load(tmp_path / "export" / "first_stage.yaml") == run.first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": (Factor("model.top_k", (1, 2)),)}, "recipes: they are the arms"),
        ({"recipes": {"one": Recipe({}, "")}}, "name at least two"),
        (
            {"recipes": {"a": Recipe({}, ""), "b": Recipe({}, "", first=DENSE)}},
            "'b': its first stage has another shape",
        ),
        ({"recipes": {"a": Recipe({}, "", first={}), "b": Recipe(DENSE, "")}}, "the control has a first stage"),
        ({"recipes": {"a": Recipe({}, ""), "b": Recipe({"model.top_k": 9}, "")}}, "recipe 'b': model.top_k=9"),
        ({"settings": SMALL | {"trainer.steps": 9}}, "whole numbers of steps are"),
    ],
)
def test_recipes_that_make_no_design_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan("toy", declared(**changes))


def test_a_setting_of_the_command_line_that_a_recipe_sets_is_refused() -> None:
    with pytest.raises(UserError, match="override model.shifted: a recipe sets it"):
        plan("toy", declared(), overrides=["model.shifted=true"])
    assert plan("toy", declared(), overrides=["trainer.steps=500"]).runs[0].config.trainer.steps == 500


def test_a_first_stage_that_isnt_there_is_said_before_training(tmp_path) -> None:
    config = plan("toy", declared()).runs[1].config
    with pytest.raises(UserError, match="is the first stage of an ablation's recipe"):
        train(config, tmp_path)
