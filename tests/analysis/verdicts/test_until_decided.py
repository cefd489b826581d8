"""Sweeps that are bought until decided: what is bought, what is decided, and the error rates over the whole course."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.report.html import render
from analysis.study import Study
from analysis.verdicts.interim import running
from analysis.verdicts.judge import judge
from analysis.verdicts.until_decided import Rule, SequentialRun, analysed_pairs, sequential_run
from core.errors import UserError
from core.records.designs import Design
from core.records.run_record import RunRecord
from tests.analysis.conftest import METRIC, make_design, make_record

EFFECTS = {"control": 0.0, "arm1": 0.2, "arm2": 0.0, "arm3": 0.08}


def failed(record: RunRecord) -> RunRecord:
    return replace(record, status="failed", reason="diverged", metrics={}, curve={}, validation={}, expert_load={})


def study_of(records: list[RunRecord], design: dict, rule: Rule, seeds: dict[str, int], retried: list = ()) -> Study:
    """The study of an adaptive design. seeds: per arm."""
    return Study.of(records, rule.designed(Design.from_json(design), seeds, retried))


def run_of(records: list[RunRecord], design: dict, rule: Rule) -> SequentialRun:
    """The sequential run that records give, whatever was bought."""
    return sequential_run(study_of(records, design, rule, {}))


def bought(effects: dict[str, float], rule: Rule, noise: float = 0.02, **changes) -> tuple[Study, list[SequentialRun]]:
    """A sweep whose runs are trained as they are wanted, and its course at every block."""
    design = make_design(**{"arms": len(effects), "seeds": rule.fixed, "margin": 0.06} | changes)
    records, courses = [], []
    while True:
        study = study_of(records, design, rule, courses[-1].seeds if courses else {})
        courses.append(sequential_run(study))
        if courses[-1].decided:
            return study_of(records, design, rule, courses[-1].seeds), courses
        assert study.missing == 0
        records += [make_record(design, arm, seed, effects[arm], noise) for arm, seed in courses[-1].wanted]


def test_arms_are_dropped_as_they_are_decided_and_nothing_else_is_bought() -> None:
    study, courses = bought(EFFECTS, Rule.of(12))
    assert courses[0].wanted == tuple((arm, seed) for seed in range(4) for arm in EFFECTS)
    last = courses[-1]
    decisions = {one: decision for (one, _), decision in last.decisions.items()}
    assert decisions == {"arm1": "different", "arm2": "equivalent", "arm3": "different"}
    assert last.seeds["arm1"] < last.seeds["control"] == max(last.seeds.values()) < last.rule.fixed
    assert last.runs == len(study.cells) == sum(last.seeds.values()) < last.fixed_runs == 48
    assert study.missing == 0
    for look in last.looks:  # what was decided isn't looked at again
        assert all(last.seeds[step.arms[0]] >= look.seeds for step in look.steps)


def test_the_course_can_be_computed_again_from_the_records() -> None:
    study, courses = bought(EFFECTS, Rule.of(12))
    for early, late in zip(courses[:-1], courses[1:], strict=True):
        assert late.looks[: len(early.looks)] == early.looks
    shuffled = Study.of(reversed(list(study.cells.values())), study.design)
    assert sequential_run(shuffled) == courses[-1]
    one_more = make_record(study.design.to_json(), "arm1", 9, -5.0)  # a record that was never bought changes nothing
    assert sequential_run(Study.of([*study.cells.values(), one_more], study.design)).looks == courses[-1].looks


def test_the_report_says_what_was_bought_and_its_numbers_allow_for_the_looks() -> None:
    study, courses = bought(EFFECTS, Rule.of(12))
    judgement = judge(study)
    rows = {row.arm: row for row in judgement.comparisons[0].rows}
    assert rows["arm1"].verdict == "worse" and rows["arm2"].verdict == "equivalent within the margin"
    fixed = Design.from_json(make_design(arms=4, seeds=rows["arm1"].effect.n))
    naive = judge(Study.of(study.cells.values(), fixed)).comparisons[0].rows[1]
    assert rows["arm1"].effect.estimate == pytest.approx(naive.effect.estimate)
    assert rows["arm1"].effect.low < naive.effect.low and rows["arm1"].effect.high > naive.effect.high
    assert rows["arm1"].effect.pvalue > naive.effect.pvalue
    assert "seeds alone" in " ".join(rows["arm1"].notes)
    assert not judgement.found.get("speeds") and judgement.found.get("main_effects") is None
    assert f"Bought until decided: {courses[-1].runs} runs beside the fixed design's 48" in judgement.headline
    assert judgement.winner == "control"
    html = render(study, judgement)
    assert "Bought until decided" in html and "arm1 label − control label" in html
    content = json.loads(json.dumps(judgement.to_dict(), allow_nan=False))
    assert content["course"]["decisions"]["arm1 − control"] == "different"


def test_a_hopeless_comparison_is_dropped_as_futile_and_gets_no_verdict() -> None:
    study, courses = bought({"control": 0.0, "arm1": 0.001}, Rule.of(20), noise=0.3, margin=0.001)
    assert set(courses[-1].decisions.values()) == {"futile"} and courses[-1].runs < 40
    assert judge(study).comparisons[0].rows[1].verdict == "no detectable difference at this resolution"


def test_failed_runs_cost_their_pairs_and_an_arm_without_any_is_lost() -> None:
    rule, design = Rule.of(8), make_design(arms=3, seeds=8)
    records = [make_record(design, arm, seed) for seed in range(4) for arm in ("control", "arm1")]
    records += [failed(make_record(design, "arm2", seed)) for seed in range(4)]
    records[1] = failed(records[1])
    found = run_of(records, design, rule)
    [look] = found.looks
    assert [(step.arms[0], step.n, step.decision) for step in look.steps][1] == ("arm2", 0, "lost")
    assert look.steps[0].n == 3 and {arm for arm, _ in found.wanted} == {"control", "arm1"}


def test_the_report_adjusts_within_the_family_that_the_looks_had() -> None:
    """A lost arm stays in it: else the report would call different what the sweep gave up as undecided."""
    design, rule = make_design(arms=3, seeds=8, margin=None), Rule.of(8)
    records = [
        make_record(design, arm, seed, 0.01 * (arm == "arm1")) for seed in range(8) for arm in ("control", "arm1")
    ]
    records += [failed(make_record(design, "arm2", seed)) for seed in range(4)]
    found = run_of(records, design, rule)
    row = judge(study_of(records, design, rule, found.seeds)).comparisons[0].rows[1]
    last = found.looks[-1].steps[0]
    assert last.decision == "undecided" and row.p_holm == pytest.approx(last.p_holm) and last.p_holm > 0.05
    assert row.verdict == "no detectable difference at this resolution"


def test_what_a_fixed_sweep_left_behind_is_not_counted_as_bought() -> None:
    design, rule = make_design(arms=3, seeds=12, margin=0.06), Rule.of(12)
    records = [
        make_record(design, arm, seed, effect, 0.02)
        for seed in range(12)
        for arm, effect in (("control", 0.0), ("arm1", 0.2), ("arm2", 0.0))
    ]
    records[-2] = failed(records[-2])  # of arm1, long after it was decided
    found = run_of(records, design, rule)
    judgement = judge(study_of(records, design, rule, found.seeds))
    assert judgement.counts == {"complete": found.runs, "failed": 0, "missing": 0}
    assert judgement.study.set_aside == {"beyond what this sweep has bought": 36 - found.runs}
    assert [row.n for row in judgement.comparisons[0].rows] == list(found.seeds.values())
    assert judgement.comparisons[0].rows[1].verdict == "worse"


def test_looks_at_the_same_pairs_are_one_with_the_largest_share() -> None:
    both = np.array([True] * 4 + [False] * 4)
    assert analysed_pairs(both, [4, 6, 8], Rule.of(8))[1] == [(4, 0.9)]
    assert analysed_pairs(~both, [4, 6, 8], Rule.of(8))[1] == [(2, 0.05), (4, 0.9)]


def with_retries(records: list[RunRecord], design: dict, rule: Rule, retried: list) -> SequentialRun:
    return sequential_run(study_of(records, design, rule, dict.fromkeys(EFFECTS, rule.fixed), retried))


def test_runs_that_are_tried_again_change_no_look_that_was_taken_and_count_in_the_next() -> None:
    rule, design = replace(Rule.of(8), futile=0.0), make_design(arms=2, seeds=8, margin=None)
    whole = [make_record(design, arm, seed, 0.0, 0.04) for seed in range(8) for arm in ("control", "arm1")]
    lost = [failed(r) if (r.study["arm"], r.seed) in (("arm1", 1), ("control", 7)) else r for r in whole]
    before = run_of(lost, design, rule)
    assert [step.n for look in before.looks for step in look.steps] == [3, 5, 6]
    retried = [(6, [("arm1", 1)]), (8, [("control", 7)])]
    after_6 = with_retries(whole, design, rule, retried)
    assert after_6.looks[:2] == before.looks[:2]  # what was seen after 4 and 6 seeds stays
    [last] = after_6.looks[-1].steps
    assert last.n == 7  # seed 1 is in, and seed 7, which came after the last look, isn't
    study = study_of(whole, design, rule, after_6.seeds, retried)
    row = judge(study).comparisons[0].rows[1]
    assert row.effect.n == 7 and row.p_holm == pytest.approx(last.p_holm) and "alpha is spent" in " ".join(row.notes)
    assert running(study).against_control[0].n == 7
    free = with_retries(whole, design, rule, [])
    assert [step.n for look in free.looks for step in look.steps] == [4, 6, 8]


def test_a_comparison_that_was_never_tested_loses_nothing_by_a_retry() -> None:
    rule, design = Rule.of(8), make_design(arms=2, seeds=8)
    whole = [make_record(design, arm, seed, 0.3 * (arm == "arm1")) for seed in range(4) for arm in ("control", "arm1")]
    lost = [failed(record) if record.study["arm"] == "arm1" else record for record in whole]
    assert set(run_of(lost, design, rule).decisions.values()) == {"lost"}
    found = with_retries(whole, design, rule, [(4, [("arm1", seed) for seed in range(4)])])
    assert set(found.decisions.values()) == {"different"}


def test_whoever_retries_until_something_is_found_finds_something_no_more_often_than_alpha() -> None:
    """A run is lost at random in each of the first seeds' pairs; whoever sees nothing tries them again, one by one."""
    rule, rng, found, charged = Rule.of(8), np.random.default_rng(0), 0, 0
    design = make_design(arms=2, seeds=8, margin=None)
    template = [make_record(design, arm, seed) for seed in range(8) for arm in ("control", "arm1")]
    for _ in range(300):
        values = rng.normal(0, 1, len(template))
        whole = [replace(r, metrics={METRIC: float(v)}) for r, v in zip(template, values, strict=True)]
        order, rejected, free = [1, 2, 3, 4], False, False
        for retried in range(5):
            still = {("arm1", seed) for seed in order[retried:]}
            records = [failed(r) if (r.study["arm"], r.seed) in still else r for r in whole]
            rounds = [(8, [("arm1", seed)]) for seed in order[:retried]]
            seen = with_retries(records, design, rule, rounds)
            rejected |= "different" in seen.decisions.values()
            free |= "different" in with_retries(records, design, rule, []).decisions.values()
        found, charged = found + rejected, charged + free
    assert found <= 26 < charged  # of 300 at 5 %: more by chance in 1 of 500; five looks for the price of one find more


def test_the_chance_of_a_verdict_allows_for_comparisons_that_were_dropped() -> None:
    effects = {"control": 0.0} | {f"arm{place}": 0.0 for place in range(1, 9)} | {"arm9": 0.014}
    _, courses = bought(effects, Rule.of(20), margin=None)
    steps = [step for look in courses[-1].looks for step in look.steps if step.arms[0] == "arm9"]
    assert all(step.chance < 0.5 for step in steps if 8 < step.n < 20)  # its Holm p after 20 seeds is 0.3


def test_a_contrast_keeps_its_arms_until_it_is_decided() -> None:
    effects = {"control": 0.0, "arm1": 0.300, "arm2": 0.297}
    rule = Rule.of(12)
    _, without = bought(effects, rule, margin=None)
    study, courses = bought(effects, rule, margin=None, contrasts=[["arm1", "arm2"]])
    assert without[-1].seeds["arm1"] < courses[-1].seeds["arm1"]
    assert judge(study).found["contrasts"][0].effect.n == courses[-1].seeds["arm1"]


def test_all_null_studies_find_something_no_more_often_than_alpha() -> None:
    """Over the whole course, looks, futile drops and the last test: 60 studies of three arms, 99 % binomial bound."""
    rng, found = np.random.default_rng(0), 0
    for number in range(60):
        scale = float(rng.uniform(0.5, 2))
        design = make_design(arms=4, seeds=8, margin=None)
        rule = Rule.of(8)
        records = [
            make_record(design, arm, 1000 * number + seed, 0.0, scale) for seed in range(rule.fixed) for arm in EFFECTS
        ]
        design["seeds"] = [1000 * number + seed for seed in range(8)]
        found += "different" in run_of(records, design, rule).decisions.values()
    assert found <= 8  # P(Binomial(60, 0.05) > 8) = 0.006


def test_what_the_last_seed_leaves_undecided_is_said() -> None:
    study, courses = bought({"control": 0.0, "arm1": 0.015}, Rule.of(6), noise=0.02, margin=None)
    assert set(courses[-1].decisions.values()) == {"undecided"}
    assert "(0% fewer), 1 of 1 comparisons undecided at the last seed." in judge(study).headline


def test_rules() -> None:
    looks = Rule.of(8).looks
    assert list(looks) == [4, 6, 8] and looks[8] == 0.9 and math.fsum(looks.values()) == pytest.approx(1)
    assert list(Rule.of(20, block=5).looks) == [5, 10, 15, 20] and Rule.of(40).block == 4
    assert Rule.of(3).looks == {3: 1.0}
    assert Rule.of_design(Rule.of(2).designed(Design.from_json(make_design(seeds=2)), {})) == Rule.of(2)
    assert Rule.of_design(Design.from_json(make_design())) is None
    with pytest.raises(UserError, match="block"):
        Rule.of(8, block=0)
    with pytest.raises(UserError, match="until-decided"):
        sequential_run(Study.of([], Design.from_json(make_design())))
