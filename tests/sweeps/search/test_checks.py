"""Every mistake is one line that names the field, before anything is trained."""

import pytest

from core.errors import UserError
from sweeps.search.plan import plan
from sweeps.search.spec import Budget, Choice, Int, Log, Uniform, from_json, to_json
from tests.sweeps.search.conftest import RATE, ROUTER, SPACE, WEIGHT, declare

UPDATE = "model.router.bias_update_rate"
LESS = {"trainer.steps": 36, "trainer.validate_every": 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space: it is empty"),
        ({"alpha": 2}, r"alpha must lie in \(0, 1\), not 2"),
        ({"power": 0}, r"power must lie in \(0, 1\), not 0"),
        ({"margin": 0}, "margin must be positive, not 0"),
        ({"confirm": 10**12}, "confirm: 1000000000000 seeds are more than a sweep can have"),
        ({"seed": -1}, "seed: -1 is not a whole number from 0 on"),
        ({"seed": 2**32}, "seed: 4294967296 is not"),
        (
            {"space": {"optimizer.learning_rat": Log(1e-4, 1e-1)}},
            "unknown config key.*did you mean optimizer.learning_rate",
        ),
        ({"space": {"seed": Int(0, 9)}}, "space: 'seed' can't be searched"),
        ({"space": {"data.corpus": Choice(("markov", "hmm"))}}, "'data.corpus' can't be searched"),
        ({"space": {"data.held_out_share": Choice((0.1, 0.2))}}, "'data.held_out_share' can't be searched"),
        ({"space": {RATE: Log(1e-1, 1e-4)}}, "low=0.1 >= high=0.0001"),
        ({"space": {RATE: Log(1e-3, 1e-3)}}, "low=0.001 >= high=0.001"),
        ({"space": {WEIGHT: Log(0, 1)}}, r"logarithmic, so low=0 must be positive.*zero=True"),
        ({"space": {"model.top_k": Int(0, 4, log=True)}}, "logarithmic, so low=0"),
        ({"space": {"model.top_k": Int(1, 4, step=2)}}, "step=2 must divide"),
        ({"space": {"model.top_k": Uniform(1, 4)}}, "no decimal number: use Int"),
        ({"space": {"model.top_k": Int(1.5, 4)}}, "whole numbers"),
        ({"space": {RATE: Log(1e-3, float("inf"))}}, "finite"),
        ({"space": {ROUTER: Choice(("topk", "softest"))}}, "has no value softest; it is one of topk, bias_balanced"),
        ({"space": {ROUTER: Int(1, 2)}}, "chosen by name"),
        ({"space": {ROUTER: Choice(("topk",))}}, "at least two levels"),
        ({"space": {"model.top_k": Choice((1, 2, 2))}}, "lists a level twice"),
        ({"space": {"model.top_k": Choice((1, "two"))}}, "can't be 'two'"),
        ({"space": {RATE: 3}}, "must be one of Log, Uniform, Int, Choice"),
        (
            {"space": SPACE | {UPDATE: Log(1e-4, 1e-1, when={ROUTER: ("topk",)})}},
            "depends on 'model.router.kind', which",
        ),
        (
            {"space": {ROUTER: Choice(("topk", "bias_balanced")), UPDATE: Log(1e-4, 1e-1, when={ROUTER: ("x",)})}},
            "waits for model.router.kind=x, which the space never has",
        ),
        ({"space": {RATE: Log(1e-4, 1e-1, when={RATE: (1e-3,)})}}, "depend on each other"),
        ({"space": {RATE: Log(1e-2, 1e-1)}}, r"default \('tiny'\) optimizer.learning_rate=0.004 is outside the space"),
        ({"control": {RATE: 1.0}}, r"control optimizer.learning_rate=1(\.0)? is outside the space"),
        ({"control": {"model.num_layers": 2}}, "control: 'model.num_layers' isn't in the space"),
        ({"memory_gb": 1e-6}, "control: it breaks the search's own limits: an estimated"),
        ({"metric": ("val/nelbo", "load/max_vio"), "pruner": "asha"}, "pruner: 'asha' needs one objective"),
        ({"pruner": "ashaa"}, "pruner: unknown 'ashaa': did you mean asha"),
        ({"sampler": "tpee"}, "sampler: unknown 'tpee': did you mean tpe"),
        ({"sampler": "cma_es", "space": {RATE: Log(1e-4, 1e-1)}}, "two or more unconditional number ranges"),
        ({"sampler": "cma_es", "metric": ("val/nelbo", "load/max_vio")}, "'cma_es' searches one objective"),
        ({"pruner": "wilcoxon"}, "at least 3 seeds"),
        ({"metric": "val/nelb"}, "unknown metric 'val/nelb': did you mean val/nelbo"),
        ({"metric": "val/nelbo", "secondary": ("val/nelbo",)}, "judged already"),
        ({"seeds": ()}, "seeds: there are none"),
        ({"seeds": 3}, "seeds: a list"),
        ({"seeds": (1001,)}, "1001 is kept for the confirmation"),
        ({"confirm": 1}, "confirm: at least 2"),
        ({"compare": RATE}, "compare: 'optimizer.learning_rate' must be an unconditional Choice"),
        ({"compare": ROUTER}, "compare: 'model.router.kind' isn't in the space"),
        (
            {"space": {"data.sequence_length": Int(8, 64)}, "settings": LESS},
            "compares runs at equal tokens",
        ),
        ({"pruner": "asha", "settings": {"trainer.validate_every": 0}}, "judges by validations on the way"),
        ({"match": "flops"}, "match: unknown value"),
        (
            {"match": "active_flops", "space": {"model.expert_width": Int(8, 16, step=8)}, "settings": LESS},
            "which solves it",
        ),
        ({"settings": {RATE: 1e-3}}, "settings optimizer.learning_rate: it is searched"),
    ],
)
def test_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said) as caught:
        plan("toy", declare(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("override", "said"), [(f"{RATE}=1e-3", "it is searched"), ("seed=1", "override seed")])
def test_overrides_may_not_set_what_is_searched(override, said) -> None:
    with pytest.raises(UserError, match=said):
        plan("toy", declare(), overrides=[override])


def test_a_budget_is_one_number() -> None:
    for wrong in ({}, {"trials": 3, "tokens": 1e6}, {"trials": 0}):
        with pytest.raises(UserError, match="budget: name a positive number"):
            Budget(**wrong)


def test_sizes_change_fields_and_unknown_ones_are_named() -> None:
    search = declare(
        sizes={"quick": {"budget": Budget(trials=3), "settings": {"trainer.steps": 12}}, "odd": {"trails": 3}}
    )
    quick = plan("toy", search, size="quick")
    assert quick.search.budget.trials == 3 and quick.rungs == (4, 12)
    with pytest.raises(UserError, match="'odd' changes 'trails'"):
        plan("toy", search, size="odd")
    with pytest.raises(UserError, match="unknown size 'quik' of 'toy': did you mean quick"):
        plan("toy", search, size="quik")


def test_a_search_survives_json() -> None:
    import json

    when = {ROUTER: ("bias_balanced",)}
    space = SPACE | {ROUTER: Choice(("topk", "bias_balanced")), UPDATE: Log(1e-4, 1e-1, when=when)}
    search = declare(space=space, metric=("val/nelbo", "load/max_vio"))
    again = from_json(json.loads(json.dumps(to_json(search))))
    assert plan("toy", again).design == plan("toy", search).design and again.space == search.space


def test_the_study_changes_with_the_space_and_not_with_the_budget() -> None:
    names = [
        plan("toy", declare(**changes)).groups[0].study
        for changes in ({}, {"budget": Budget(trials=99)}, {"seed": 1}, {"space": SPACE | {RATE: Log(1e-4, 1)}})
    ]
    assert names[0] == names[1] and len(set(names)) == 3
