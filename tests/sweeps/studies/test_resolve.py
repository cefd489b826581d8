import json
import re

import pytest

from core.config.presets import preset
from core.config.run import get_field
from core.errors import UserError
from core.model.flops import flops_per_token
from core.records.designs import Design
from sweeps.runs.cost import calibrate, total_s
from sweeps.studies.ablation import Size
from sweeps.studies.factors import Factor
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan

TWO = (Factor("objective.load_balancing_weight", (0.0, 0.01)), Factor("objective.z_loss_weight", (0.0, 0.001, 0.01)))
TWO_CONTROL = {"objective.load_balancing_weight": 0.01, "objective.z_loss_weight": 0.001}


LISTED = ({"objective.load_balancing_weight": 0.0}, {"objective.z_loss_weight": 0.01})


@pytest.mark.parametrize(
    ("which", "others"),
    [
        ("all", [(0.0, 0.0), (0.0, 0.001), (0.0, 0.01), (0.01, 0.0), (0.01, 0.01)]),
        ("one_at_a_time", [(0.0, 0.001), (0.01, 0.0), (0.01, 0.01)]),  # that differ from the control in one factor
        (LISTED, [(0.0, 0.001), (0.01, 0.01)]),
    ],
)
def test_arms_are_combinations_of_levels_and_the_control_comes_first(ablation, which, others):
    control, *arms = ablation(factors=TWO, control=TWO_CONTROL, arms=which).source.expand()
    assert control.name == "load_balancing_weight=0.01,z_loss_weight=0.001" and control.settings == TWO_CONTROL
    assert len({arm.name for arm in (control, *arms)}) == 1 + len(arms)
    assert [tuple(arm.settings.values()) for arm in arms] == others


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (({"objective.zloss_weight": 0.0},), "arms: 'objective.zloss_weight' is not a factor: did you mean"),
        (({"objective.z_loss_weight": 0.5},), "arms: objective.z_loss_weight=0.5 is not among the factor's levels"),
        (({"objective.z_loss_weight": 0.001},), "is the control or listed twice"),
        (({"objective.z_loss_weight": 0.0},) * 2, "is the control or listed twice"),
    ],
)
def test_listed_arms_that_make_no_design_are_refused(ablation, listed, message):
    with pytest.raises(UserError, match=message):
        ablation(factors=TWO, control=TWO_CONTROL, arms=listed).source.expand()


def test_a_plan_says_under_which_arms_tokens_see_each_other(make_plan):
    factor = Factor("model.router.kind", ("topk", "expert_choice", "soft"))
    arms = make_plan(factors=(factor,), control={"model.router.kind": "topk"}, match="active_flops").design.arms
    assert [list(arm.notes) for arm in arms] == [
        [],
        ["a token's experts depend on the other tokens of its sequence"],
        ["every token meets all 4 experts"],
    ]
    assert len({arm.flops_per_token for arm in arms}) == 1


def test_a_plan_says_which_arms_cost_more_where_nothing_is_matched(make_plan):
    arms = make_plan(factors=(Factor("model.top_k", (1, 2)),), control={"model.top_k": 1}).design.arms
    more = arms[1].flops_per_token / arms[0].flops_per_token - 1
    assert more > 0.01 and arms[0].notes == ()
    assert arms[1].notes == (f"{more:+.0%} FLOPs per token beside the control's: not a comparison at equal compute",)


def test_what_a_router_learns_of_time_costs_once_a_sequence(make_plan):
    factor = Factor("model.router.kind", ("topk", "film"))
    arms = make_plan(factors=(factor,), control={"model.router.kind": "topk"}, match="active_flops").design.arms
    assert arms[0].flops_per_token == arms[1].flops_per_token
    assert arms[1].parameters.total - arms[0].parameters.total == 2 * 16 * 64  # film, one layer, D = 16


def test_names_are_unique_and_fit_for_a_file_system_that_ignores_case(ablation):
    levels = ("text:/a b", "text:/a_b", "text:/A_b", "x" * 300, "x" * 299 + "y")
    arms = ablation(
        factors=(Factor("data.corpus", levels),), control={"data.corpus": levels[0]}, settings={}
    ).source.expand()
    names = [arm.name for arm in arms]
    assert len({name.lower() for name in names}) == len(levels)
    assert all(re.fullmatch(r"[A-Za-z0-9._=,+~-]{1,128}", name) for name in names)


def test_factors_whose_last_parts_agree_are_told_apart_by_more_of_the_key(ablation):
    factors = (Factor("model.num_experts", (4, 8)), Factor("other.num_experts", (1, 2)))
    first = ablation(factors=factors, control={"model.num_experts": 4, "other.num_experts": 1}).source.expand()[0]
    assert first.name == "model.num_experts=4,other.num_experts=1"


def test_a_plan_holds_every_run_block_by_block(make_plan):
    made = make_plan(seeds=(3, 5))
    assert [(run.seed, run.settings["objective.load_balancing_weight"]) for run in made.runs] == [
        (3, 0.01),
        (3, 0.0),
        (5, 0.01),
        (5, 0.0),
    ]
    for run in made.runs:
        assert (
            get_field(run.config, "objective.load_balancing_weight") == run.settings["objective.load_balancing_weight"]
        )
    assert len({run.run_hash for run in made.runs}) == 4
    assert len({run.arm_hash for run in made.runs}) == 2


def test_the_design_says_all_that_reports_need(make_plan):
    design = make_plan(overrides=["trainer.steps=40"]).design
    content = json.loads(json.dumps(design.to_json()))
    said = "schema ablation size question base metric secondary margin alpha power control seeds factors arms contrasts"
    assert content.keys() == {*said.split(), "overrides", "devices", "data_fingerprint", "command"}
    assert design.control == "load_balancing_weight=0.01" == design.arms[0].name
    assert design.command == "ablate run balance trainer.steps=40"
    said = "name label settings hash parameters flops_per_token likelihood notes data_fingerprint"
    assert set(content["arms"][0]) == set(said.split())
    assert set(content["arms"][0]["parameters"]) == {"total", "active"}
    assert Design.from_json(content) == design


def test_a_plan_survives_its_journey_to_another_process(make_plan):
    made = make_plan()
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_overrides_change_every_arms_hash(make_plan):
    before, after = make_plan(), make_plan(overrides=["trainer.steps=31"])
    assert not {run.run_hash for run in before.runs} & {run.run_hash for run in after.runs}
    assert all(run.config.trainer.steps == 31 for run in after.runs)


def test_a_size_replaces_what_it_says_and_holds_factors_that_it_drops(make_plan):
    quick = Size(factors=TWO[1:], seeds=(7,), settings={"trainer.steps": 5})
    made = make_plan(size="quick", factors=TWO, control=TWO_CONTROL, sizes={"quick": quick})
    assert made.study_name == "balance.quick"
    assert made.design.command == "ablate run balance --size quick"
    assert len(made.runs) == 3
    assert all(run.config.objective.load_balancing_weight == 0.01 for run in made.runs)
    assert all(run.config.trainer.steps == 5 and run.seed == 7 for run in made.runs)


REFUSALS = [
    ({"factors": ()}, "factors:"),
    ({"factors": (Factor("model.topk", (1, 2)),), "control": {"model.topk": 1}}, "model.top_k"),
    ({"factors": (Factor("seed", (1, 2)),), "control": {"seed": 1}}, "seeds"),
    ({"factors": (Factor("objective.load_balancing_weight", (0.01,)),)}, "at least two"),
    ({"factors": (Factor("objective.load_balancing_weight", (0.0, 0.01, 0.0)),)}, "0 twice"),
    ({"factors": (*TWO, TWO[0]), "control": TWO_CONTROL}, "listed 2 times"),
    ({"control": {"objective.load_balancing_weight": 0.5}}, "0.5 is not among"),
    ({"control": {}}, "control: no level for the factor 'objective.load_balancing_weight'"),
    ({"control": TWO_CONTROL}, "'objective.z_loss_weight' is not a factor"),
    ({"metric": "val/nelb"}, "did you mean val/nelbo"),
    ({"secondary": ("load/maxvio",)}, "load/max_vio"),
    ({"secondary": ("val/nelbo",)}, "judged already"),
    ({"base": "tinny"}, "tiny"),
    ({"seeds": ()}, "seeds: there are none"),
    ({"seeds": (1, 2, 1)}, "1 is listed twice"),
    ({"seeds": (1.5,)}, "1.5 is not a whole number"),
    ({"seeds": (-1,)}, "-1"),
    ({"alpha": 1.5}, "alpha"),
    ({"margin": -0.1}, "margin"),
    ({"settings": {"objective": {"load_balancing_weight": 0.1}}}, "it is a factor"),
    ({"settings": {"seed": 4}}, "seeds"),
    ({"metric": "val/excess_nelbo", "settings": {"data.corpus": "stdlib"}}, "known entropy"),
    ({"settings": {"data.corpus": "nosuch"}}, "data.corpus='nosuch' is unknown"),
    ({"match": "active_flops", "factors": (Factor("model.expert_width", (8, 16)),), "control": {}}, "control"),
    ({"size": "quik", "sizes": {"quick": Size(seeds=(1,))}}, "did you mean quick"),
    (
        {"factors": (Factor("model.top_k", (1, 9)),), "control": {"model.top_k": 1}},
        "^arm top_k=9: model.top_k=9 exceeds",
    ),
    ({"factors": (Factor("optimizer.beta1", (0.9, "0.9")),), "control": {"optimizer.beta1": 0.9}}, "same config"),
    (
        {
            "factors": (Factor("model.num_heads", (1, 8)),),
            "control": {"model.num_heads": 1},
            "match": "active_flops",
            "settings": {"data.corpus": "markov"},
        },
        r"^arm num_heads=8: match='active_flops' can't be met.*\+\d",
    ),
    ({"overrides": ["model.hidden_size=15"]}, "^model.hidden_size=15"),  # no arm's fault
    ({"overrides": ["objective.load_balancing_weight=0.3"]}, "it is a factor"),
    ({"overrides": ["trainer.stepz=3"]}, "trainer.steps"),
    ({"overrides": ["trainer.steps"]}, "key=value"),
    ({"overrides": ["seed=1"]}, "seeds"),
]


@pytest.mark.parametrize("changes, said", REFUSALS, ids=[said for _, said in REFUSALS])
def test_mistakes_are_refused_in_one_line(make_plan, changes, said):
    with pytest.raises(UserError, match=said) as refusal:
        make_plan(**changes)
    assert "\n" not in str(refusal.value)


def test_matched_arms_spend_the_controls_flops(ablation):
    # At a width at which a multiple of 4 is fine-grained enough; 2 of 8 experts against 1 and 4.
    declared = ablation(
        factors=(Factor("model.top_k", (1, 2, 4)),),
        control={"model.top_k": 2},
        match="active_flops",
        settings={"model.expert_width": 64},
    )
    arms = plan("experts", declared).runs[:3]
    control = flops_per_token(arms[0].config)
    assert arms[0].config.model.expert_width == 64
    assert arms[1].config.model.expert_width != 64
    for run in arms:
        assert run.config.model.expert_width % 4 == 0
        assert abs(flops_per_token(run.config) / control - 1) < 0.01


def test_calibration_measures_each_shape_of_computation_once(make_plan):
    made = make_plan(
        factors=(TWO[0], Factor("model.top_k", (1, 2))), control={TWO[0].key: 0.01, "model.top_k": 1}, seeds=range(3)
    )
    measured = []
    cost = calibrate(made, measure=lambda config: measured.append(config.model.top_k) or 0.1 * config.model.top_k)
    assert sorted(measured) == [1, 2]
    # 30 steps, and 2 validations of 8 sequences in batches of 4, each a forward pass: a third of a step.
    assert cost["load_balancing_weight=0.01,top_k=2"] == pytest.approx(0.2 * (30 + 4 / 3))
    assert total_s(cost, made.runs, 2) == pytest.approx(sum(cost.values()) * 3 / 2)


def test_calibration_trains_real_steps(make_plan):
    assert total_s(calibrate(make_plan()), make_plan().runs, 1) > 0


def test_presets_are_what_bases_name():
    assert preset("tiny").trainer.steps > 0


KINDS = (
    Factor("model.router.kind", ("topk", "film"), label="router"),
    Factor("model.router.sees", ("timestep", "shuffled")),
)
TOLD = {"model.router.kind": "film"}
SHUFFLED = {"model.router.kind": "film", "model.router.sees": "shuffled"}


def routers(make_plan, **changes):
    control = {"model.router.kind": "topk", "model.router.sees": "timestep"}
    return make_plan(factors=KINDS, control=control, arms=(TOLD, SHUFFLED), **changes).design


def test_planned_contrasts_name_two_arms_of_the_design(make_plan) -> None:
    design = routers(make_plan, contrasts=((TOLD, SHUFFLED),))
    assert design.contrasts == (tuple(arm.name for arm in design.arms[1:]),)


@pytest.mark.parametrize(
    ("contrasts", "said"),
    [
        ((({"model.router.kind": "hash"}, {}),), "kind=hash, .* is no arm of this design"),
        ((({}, {}),), "compared with itself"),
        (((TOLD, {}),), "every arm is compared with the control already"),
        (({"model.router.kind": "film"},), "isn't a pair of settings"),
    ],
)
def test_a_contrast_that_is_none_is_refused(make_plan, contrasts, said: str) -> None:
    with pytest.raises(UserError, match=said):
        routers(make_plan, contrasts=contrasts)


def test_a_label_leaves_out_what_a_router_is_not_told(make_plan) -> None:
    labels = [arm.label for arm in routers(make_plan).arms]
    assert labels == ["router topk", "router film, sees timestep", "router film, sees shuffled"]


def test_a_bound_of_max_vio_that_differs_is_said(make_plan) -> None:
    factor = Factor("model.top_k", (1, 2))
    for secondary, said in ((("load/max_vio",), True), ((), False)):
        arms = make_plan(factors=(factor,), control={"model.top_k": 1}, secondary=secondary).design.arms
        assert [any("MaxVio isn't comparable" in note for note in arm.notes) for arm in arms] == [False, said]
