"""Ladders: points cost what they should, mistakes are said in a line, and a plan carries what a report needs."""

from typing import Any

import pytest

from core.errors import UserError
from core.model.flops import count, training_flops
from sweeps.studies.ablation import Ablation, Size
from sweeps.studies.ladder import Ladder
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan

SETTINGS: dict[str, Any] = {
    "data.corpus": "markov", "data.sequence_length": 16, "trainer.batch_size": 4, "trainer.validate_every": 0
}  # fmt: skip


def model(hidden: int, experts: int = 0) -> dict[str, Any]:
    own = {"model.num_experts": experts, "model.top_k": 2 if experts else 0, "model.dense_width": 0 if experts else 32}
    own |= {
        "model.expert_width": 16 if experts else 0,
        "model.num_layers": 1,
        "model.num_heads": 1,
        "model.head_dim": 8,
    }
    return own | {"model.hidden_size": hidden}


SPARSE = {"dense": (model(8), model(16)), "sparse": (model(8, 8), model(16, 8))}


def ladder_of(**changes: Any) -> Ablation:
    ladder = Ladder(**({"families": SPARSE, "flops": (1e9, 2e9), "tokens_per_parameter": (5.0,)} | changes))
    return Ablation(question="?", ladder=ladder, base="tiny", settings=SETTINGS, seeds=range(1))


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan("toy", ladder_of())


def test_points_cost_their_budget_or_have_their_ratio(planned) -> None:
    assert len(planned.runs) == 12
    for arm, run in zip(planned.design.arms, planned.runs, strict=True):
        point, active = arm.point, count(run.config.model).active
        assert point.flops == training_flops(run.config) and arm.parameters.active == active
        assert point.tokens == run.config.trainer.steps * 4 * 16
        assert point.sparsity == (4.0 if point.family == "sparse" else 1.0)
        if point.budget:
            assert point.flops == pytest.approx(point.budget, rel=0.01)
        else:
            assert point.tokens / active == pytest.approx(5, rel=0.01)
    assert {p.budget for p in (arm.point for arm in planned.design.arms)} == {None, 1e9, 2e9}


def test_a_plan_survives_its_way_to_a_worker_with_every_level_among_its_factor(planned) -> None:
    levels = {factor.key: factor.levels for factor in planned.design.factors}
    assert {"model.hidden_size", "model.num_experts", "trainer.steps"} <= set(levels)
    for run in planned.runs:
        assert all(level in levels[key] for key, level in run.settings.items())
    assert Plan.from_json(planned.to_json()).runs == planned.runs


def test_points_outside_of_the_bounds_are_left_out_and_equal_ones_are_trained_once(planned) -> None:
    arms = [arm for arm in planned.design.arms if arm.point.family == "dense"]
    dense = {"families": {"dense": SPARSE["dense"]}}
    ratios = sorted(arm.point.tokens / arm.parameters.active for arm in arms if arm.point.budget)
    assert len(plan("toy", ladder_of(**dense, between=(0, ratios[-2] + 1))).runs) == len(arms) - 1
    steps = sorted(arm.point.tokens / 64 for arm in arms)
    assert len(plan("toy", ladder_of(**dense, least_steps=int(steps[2]))).runs) == len(arms) - 2
    assert len(plan("toy", ladder_of(**dense, flops=(), tokens_per_parameter=(5.0, 5.001))).runs) == 2


def test_sizes_and_overrides_keep_the_budget() -> None:
    small = Ladder(families={"dense": SPARSE["dense"]}, flops=(1e9,))
    ablation = Ablation(**{**vars(ladder_of()), "sizes": {"quick": Size(ladder=small)}})
    planned = plan("toy", ablation, size="quick", overrides=["trainer.batch_size=8"])
    assert [round(training_flops(run.config) / 1e7) for run in planned.runs] == [100, 100]


@pytest.mark.parametrize(
    ("change", "overrides", "said"),
    [
        ({}, ["trainer.steps=5"], "override trainer.steps: the ladder sets it"),
        ({}, ["model.hidden_size=5"], "override model.hidden_size: the ladder sets it"),
        ({"flops": (1e7,)}, [], "whole ones are .* off: use smaller batches"),
        ({"families": {"dense": (model(16), model(8))}}, [], "model 2 of 'dense' isn't larger"),
        ({"families": {"dense": (model(8) | {"model.top_k": 3},)}}, [], "model 1 of 'dense': model.top_k=3"),
        ({"least_steps": 10**9}, [], "no point has 0 to inf tokens per parameter and at least"),
    ],
)
def test_what_cannot_be_a_ladder_is_refused(change: dict[str, Any], overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan("toy", ladder_of(**change), overrides=overrides)


def test_families_that_differ_by_case_alone_share_folders_and_are_refused() -> None:
    families = {"dense": SPARSE["dense"], "Dense": SPARSE["dense"]}
    with pytest.raises(UserError, match="two points are called dense,"):
        plan("toy", ladder_of(families=families))


def test_a_ladder_has_no_factors_and_no_empty_design() -> None:
    with pytest.raises(UserError, match="leave out factors, control"):
        Ablation(question="?", control={"model.top_k": 1}, ladder=ladder_of().ladder)
    with pytest.raises(UserError, match="give flops"):
        Ladder(families=SPARSE)
    with pytest.raises(UserError, match="at least one kind of model"):
        Ladder(families={}, flops=(1e9,))
