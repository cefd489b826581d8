"""The running verdict: its numbers are those of analysis.statistics.sequential, and hold however often one looks."""

import math
from dataclasses import replace

import pytest

from analysis.statistics.sequential import confidence_sequence
from analysis.study import Study
from analysis.verdicts.interim import PENDING, differences, running
from analysis.verdicts.judge import judge
from analysis.verdicts.until_decided import Rule
from core.records.designs import Design
from tests.analysis.conftest import METRIC, make_design
from tests.analysis.statistics.test_sequential import rejects

PAIR = ("arm1", "control")


def study_of(records, design, arms=None, seeds=None) -> Study:
    kept = [r for r in records if (arms is None or r.study["arm"] in arms) and (seeds is None or r.seed in seeds)]
    return Study.of(kept, Design.from_json(design))


def without(records, arm) -> list:
    """The records where the arm's run of seed 2 failed."""
    return [
        replace(r, status="failed", reason="boom", metrics={}) if (r.study["arm"], r.seed) == (arm, 2) else r
        for r in records
    ]


def test_intervals_are_the_confidence_sequence_and_wider_than_the_reports(records_of) -> None:
    design = make_design(arms=3, seeds=8)
    records = records_of(design, {"arm1": -0.06}, noise=0.02)
    for seeds in range(3, 9):
        study = study_of(records, design, seeds=range(seeds))
        found = running(study)
        for row, fixed in zip(found.against_control, judge(study).comparisons[0].rows[1:], strict=True):
            pairs = study.values(row.arms[0], METRIC)[:seeds] - study.values("control", METRIC)[:seeds]
            assert (row.low, row.high) == pytest.approx(confidence_sequence(pairs)) and row.n == seeds
            assert row.low < fixed.effect.low and row.high > fixed.effect.high
            assert row.estimate == fixed.effect.estimate and row.planned == 8


def test_a_verdict_is_given_once_it_may_be_and_stays(records_of) -> None:
    design = make_design(arms=2, seeds=10, margin=None)
    records = records_of(design, {"arm1": -0.05}, noise=0.02)
    said, pvalues = [], []
    for seeds in range(11):
        study = study_of(records, design, seeds=range(seeds))
        row = running(study).against_control[0]
        said.append(row.verdict)
        pvalues.append(1.0 if row.p_holm is None else row.p_holm)
        pairs = differences(study, PAIR, METRIC)
        assert (pvalues[-1] < 0.05) == (seeds >= 3 and rejects(pairs))
    assert said[2] == PENDING and said[-1] == "better" and pvalues == sorted(pvalues, reverse=True)
    assert said == [PENDING] * said.count(PENDING) + ["better"] * said.count("better")


def test_differences_are_in_the_order_in_which_pairs_were_complete(records_of) -> None:
    design = make_design(arms=2, seeds=4)
    records = records_of(design)
    late = [replace(r, finished_at="2027") if (r.study["arm"], r.seed) == ("control", 0) else r for r in records]
    study = study_of(late, design)
    values = study.values("arm1", METRIC) - study.values("control", METRIC)
    assert differences(study, PAIR, METRIC).tolist() == values[[1, 2, 3, 0]].tolist()


def test_comparisons_without_a_pair_count_for_holm_and_failures_are_told(records_of) -> None:
    design = make_design(arms=3, seeds=8)
    records = records_of(design, {"arm1": -0.3}, noise=0.02)
    alone = running(study_of(records, make_design(arms=2, seeds=8))).against_control[0]
    waiting = running(study_of(records, design, arms=("control", "arm1")))
    row, other = waiting.against_control
    assert row.p_holm == pytest.approx(2 * alone.p_holm) and row.verdict == "better"
    assert (other.n, other.estimate, other.p_holm, other.verdict) == (0, None, None, PENDING)
    assert (other.low, other.high) == (-math.inf, math.inf)
    assert waiting.headline == "arm1 label is better. 1 of 2 comparisons open."
    row = running(study_of(without(records, "arm1"), design)).against_control[0]
    assert row.n == 7 and row.verdict == "better, among runs that finished (1 failed)"


def test_equivalence_needs_the_adjusted_interval_within_the_margin(records_of) -> None:
    design = make_design(arms=3, seeds=12, margin=0.1)
    found = running(study_of(records_of(design, noise=0.01), design)).against_control
    assert {row.verdict for row in found} == {"equivalent within the margin"}
    tight = running(study_of(records_of(design, noise=0.01), {**design, "margin": 0.001})).against_control
    assert {row.verdict for row in tight} == {PENDING}


def test_an_adaptive_design_keeps_its_own_looks(records_of) -> None:
    rule = Rule.of(8, block=2)
    design = rule.designed(Design.from_json(make_design(arms=2, seeds=8)), {"control": 6, "arm1": 6}).to_json()
    study = study_of(records_of(design, {"arm1": 0.004}, noise=0.02), design, seeds=range(5))
    row, table = running(study), judge(study).comparisons[0].rows[1]
    assert row.looked == 4
    shown = row.against_control[0]
    assert (shown.low, shown.high, shown.p_holm, shown.n) == (
        table.effect.low, table.effect.high, table.p_holm, table.effect.n,
    )  # fmt: skip


def of_differences(records_of, design, values) -> Study:
    """A study of two arms whose differences are these, seed by seed."""
    found = records_of(design)
    for record in found:
        record.metrics[METRIC] = 3.0 + (values[record.seed] if record.study["arm"] == "arm1" else 0.0)
    return study_of(found, design)


def test_ties_at_the_beginning_are_no_evidence(records_of) -> None:
    design = make_design(arms=2, seeds=6, margin=None)
    row = running(of_differences(records_of, design, [1.0, 1.0, -1.0, 2.0, -2.0, 0.0])).against_control[0]
    assert row.p_holm == 1.0 and row.verdict == PENDING and row.low < 0 < row.high
    same = running(of_differences(records_of, design, [1.0] * 6)).against_control[0]
    assert same.verdict == PENDING


def test_no_direction_is_claimed_once_the_mean_has_turned(records_of) -> None:
    values = [-0.10, -0.101, -0.099, 0.1, 0.2, 0.3, 0.25, 0.15]
    early, late = (
        running(of_differences(records_of, make_design(arms=2, seeds=n, margin=None), values[:n])).against_control[0]
        for n in (3, 8)
    )
    assert early.verdict == "better"
    assert late.p_holm == pytest.approx(early.p_holm)
    assert late.verdict == PENDING and "changed its sign" in late.notes[-1]


def test_what_the_control_lost_and_what_is_below_the_margin_is_noted(records_of) -> None:
    design = make_design(arms=2, seeds=10, margin=0.1)
    found = records_of(design, {"arm1": -0.03}, noise=0.005)
    row = running(study_of(without(found, "control"), design)).against_control[0]
    assert row.verdict == "better" and row.notes == (
        "the control lost 1 of its runs", "the difference is real but smaller than the margin of 0.1",
    )  # fmt: skip
