from dataclasses import replace

from analysis.report import run_tables as runs
from analysis.report.html import origin
from analysis.study import Study
from analysis.verdicts.comparisons import metric_table
from analysis.verdicts.judge import judge
from tests.analysis.conftest import METRIC, make_design


def changed(record, **settings):
    return replace(record, config=record.config | settings)


def test_a_run_differs_from_the_control_of_its_own_seed(records_of) -> None:
    found = [
        changed(r, model={"top_k": 4} if r.arm_hash == "hash-arm1" else {"top_k": 2, "depth": r.seed})
        for r in records_of(make_design(arms=2))
    ]
    rows = runs.runs(Study.of(found))
    by_arm = {(row["arm"], row["seed"]): row["differs"] for row in rows}
    assert by_arm["control label", 3] == []
    assert by_arm["arm1 label", 3] == [("model.top_k", "2", "4"), ("model.depth", "3", "unset")]


def test_without_the_controls_run_of_that_seed_any_of_its_runs_will_do(records_of) -> None:
    found = [changed(r, model={"top_k": 1 + (r.arm_hash == "hash-arm1")}) for r in records_of(make_design(arms=2))]
    kept = [r for r in found if (r.arm_hash, r.seed) != ("hash-control", 2)]
    study = Study.of(kept)
    row = next(row for row in runs.runs(study) if (row["arm"], row["seed"]) == ("arm1 label", 2))
    assert row["differs"] == [("model.top_k", "1", "2")]
    alone = Study.of([r for r in found if r.arm_hash == "hash-arm1"])
    assert [row["differs"] for row in runs.runs(alone) if row["status"] == "complete"] == [[]] * 6


def test_arms_count_their_runs_and_alarms(records_of) -> None:
    found = records_of(make_design(arms=2))
    found[7] = replace(
        found[7], status="failed", reason="x", metrics={}, alarms=[{"kind": "NaN", "step": 1, "detail": ""}]
    )
    study = Study.of(found[:-1])
    control, arm = runs.arms(study, (metric_table(study, METRIC, primary=True),))
    assert (control["complete"], arm["complete"], arm["failed"], arm["wanted"]) == (6, 4, 1, 6)
    assert arm["alarms"] == ["NaN"] and arm["values"][0].n == 4


def test_facts_that_every_run_has_of_its_own_are_counted(records_of) -> None:
    found = [
        replace(r, provenance={"weights": r.run_hash, "host": f"node{r.seed % 2}"}) for r in records_of(make_design())
    ]
    facts = runs.provenance(found)
    assert facts["weights"] == ["18 different ones, each in its run's record"]
    assert facts["host"] == ["node0 (9 of 18 runs)", "node1 (9 of 18 runs)"]


def test_the_methods_sentence_holds_for_the_records(records_of) -> None:
    found = records_of(make_design())
    study = Study.of(found)
    told = judge(study).methods
    assert "each of 2 arms with the control “control label”" in told and "over 6 seeds" in told and "0.02" in told
    found[-1] = replace(found[-1], status="failed", reason="x", metrics={})
    study = Study.of(found)
    told = judge(study).methods
    assert "over 5 to 6 seeds" in told and told.endswith("; 1 run failed and is left out.")


def test_a_bibliographys_note_holds_no_braces() -> None:
    assert origin({"git_commit": ["a{b}"], "data fingerprint": ["x\\y"]}) == "commit ab; data xy"
