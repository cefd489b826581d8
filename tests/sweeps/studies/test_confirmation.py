from dataclasses import replace

import pytest

from core.config.presets import Recipe
from core.errors import UserError
from sweeps.studies.ablation import Size
from sweeps.studies.factors import Factor
from sweeps.studies.resolve import confirmation_plan, fresh_seeds, plan
from tests.sweeps.conftest import SMALL, declare

WEIGHT, TOP_K = "objective.load_balancing_weight", "model.top_k"


def declared():
    return declare(
        factors=(Factor(WEIGHT, (0.0, 0.01)), Factor(TOP_K, (1, 2))),
        control={WEIGHT: 0.01, TOP_K: 2},
        sizes={"quick": Size(factors=(Factor(WEIGHT, (0.0, 0.01, 0.1)),), seeds=range(3))},
    )


@pytest.mark.parametrize("size", ["full", "quick"])
def test_the_winner_and_the_control_alone_are_trained_as_they_were_on_fresh_seeds(size) -> None:
    first = plan("balance", declared(), size=size, overrides=["trainer.steps=7"])
    arm = first.design.arms[1].name
    confirming = confirmation_plan(
        "balance", declared(), first.design, arm, fresh_seeds(first.design, 4), "ablate confirm x"
    )
    assert confirming.study_name == f"balance.{size}.confirm" and confirming.design.confirms == arm
    assert [run.arm for run in confirming.runs] == [first.design.control, arm] * 4
    assert not {run.seed for run in confirming.runs} & {run.seed for run in first.runs}
    # The same configs but for the seed, the command line's settings included.
    assert {run.arm_hash for run in confirming.runs} == {entry.hash for entry in first.design.arms[:2]}
    assert {run.config.trainer.steps for run in confirming.runs} == {7}


def test_a_recipe_is_confirmed_beside_the_control_alone() -> None:
    dense = {"model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0, "model.dense_width": 16}
    recipes = {
        "sparse": Recipe({}, "here"),
        "dense": Recipe(dense, "here"),
        "shifted": Recipe({"model.shifted": True}, "here"),
    }
    declared = declare(factors=(), control={}, settings=SMALL | {"trainer.steps": 400}, recipes=recipes)
    design = plan("balance", declared).design
    confirming = confirmation_plan("balance", declared, design, "dense", fresh_seeds(design, 2), "")
    assert [run.arm for run in confirming.runs] == ["sparse", "dense"] * 2
    assert {run.arm_hash for run in confirming.runs} == {entry.hash for entry in design.arms[:2]}


def test_seeds_that_chose_and_declarations_that_changed_are_refused() -> None:
    first = plan("balance", declared())
    arm = first.design.arms[1].name
    with pytest.raises(UserError, match=r"seeds \[1\] had a part in the choice"):
        confirmation_plan("balance", declared(), first.design, arm, (1, 1000), "")
    changed = replace(declared(), base="proxy_1m")
    with pytest.raises(UserError, match="has changed since"):
        confirmation_plan("balance", changed, first.design, arm, (1000, 1001), "")
    with pytest.raises(UserError, match="--seeds must be at least 2"):
        fresh_seeds(first.design, 1)


def test_fresh_seeds_follow_those_of_a_design_that_reaches_them() -> None:
    design = plan("balance", declared()).design
    assert list(fresh_seeds(replace(design, seeds=(0, 1)), 2)) == [1000, 1001]
    assert list(fresh_seeds(replace(design, seeds=(0, 1003)), 2)) == [1004, 1005]
