"""From records to words: what is compared, what is left out and what is said of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.arm_figures import bands
from analysis.verdicts.interim import running
from analysis.verdicts.judge import judge
from analysis.verdicts.until_decided import Rule, sequential_run
from core.records import run_record
from core.records.designs import Design
from tests.analysis.conftest import METRIC, make_design, make_record


def rows(judgement, metric: int = 0) -> dict:
    return {row.arm: row for row in judgement.comparisons[metric].rows}


def test_planted_effects_get_their_words(records_of) -> None:
    design = make_design(arms=4)
    found = records_of(design, {"arm1": -0.3, "arm2": 0.3}, noise=0.005)
    judgement = judge(Study.of(found))
    verdicts = {arm: row.verdict for arm, row in rows(judgement).items()}
    assert verdicts == {
        "control": "control", "arm1": "better", "arm2": "worse", "arm3": "equivalent within the margin"
    }  # fmt: skip
    assert judgement.winner == "arm1"
    assert "better" in judgement.headline and "arm1 label" in judgement.headline
    assert rows(judgement)["arm1"].effect.correlation > 0.95


def test_without_a_better_arm_the_control_stands(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(), {"arm1": 0.3, "arm2": 0.3})))
    assert judgement.winner == "control" and "control stands" in judgement.winner_reason


def test_a_real_but_small_difference_says_so(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(), {"arm1": -0.01}, noise=0.0005)))
    row = rows(judgement)["arm1"]
    assert row.verdict == "better" and "smaller than the margin" in " ".join(row.notes)


@pytest.mark.parametrize("off", [1 - 1e-13, 1.0, 1 + 1e-13])
def test_of_arms_that_are_equal_but_for_rounding_the_first_wins(records_of, off: float) -> None:
    design = make_design()
    found = {(r.study["arm"], r.seed): r for r in records_of(design, {"arm1": -0.3}, noise=0.003)}
    for seed in design["seeds"]:
        value = found["arm1", seed].metrics[METRIC] * off
        found["arm2", seed] = replace(found["arm2", seed], metrics=found["arm2", seed].metrics | {METRIC: value})
    assert judge(Study.of(list(found.values()))).winner == "arm1"


def test_a_p_value_just_below_alpha_is_not_printed_as_alpha(records_of) -> None:
    design = make_design(arms=2, margin=None)
    found = records_of(design, {"arm1": -0.02}, noise=0.01)
    p = judge(Study.of(found)).comparisons[0].rows[1].p_holm
    design["alpha"] = p * 1.002  # as if alpha had two digits, and p were just below it
    judgement = judge(Study.of(found))
    assert judgement.winner == "arm1"
    told = float(re.search(r"Holm p = (\S+)\)", judgement.winner_reason)[1])
    assert told < design["alpha"]


def fail(record):
    return replace(record, status="failed", reason="boom", metrics={})


def test_failed_runs_are_counted_beside_the_verdict_and_never_exported(records_of) -> None:
    found = records_of(make_design(), {"arm1": -0.3})
    found = [fail(r) if (r.arm_hash, r.seed) == ("hash-arm1", 2) else r for r in found]
    judgement = judge(Study.of(found))
    row = rows(judgement)["arm1"]
    assert row.effect.n == 5
    assert "1 failed" in row.verdict and row.verdict != "better"
    assert "1 of 6 runs failed: boom" in row.notes
    assert judgement.winner == "control"
    assert judgement.counts == {"complete": 17, "failed": 1, "missing": 0}


def test_two_pairs_are_no_verdict(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(seeds=2), {"arm1": -5})))
    assert rows(judgement)["arm1"].verdict == "no verdict"
    assert judgement.winner is None and "No verdict yet" in judgement.headline


def test_identical_values_are_said_not_tested(records_of) -> None:
    found = [replace(r, metrics={**r.metrics, METRIC: 1.0}) for r in records_of(make_design())]
    judgement = judge(Study.of(found))
    assert all("identical" in " ".join(row.notes) for arm, row in rows(judgement).items() if arm != "control")


def test_an_unfinished_sweep_says_what_is_missing(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design())[:-4]))
    assert judgement.counts["missing"] == 4 and "4 of 18 runs to go" in judgement.headline
    assert "compared on 2 of 6 seeds" in " ".join(rows(judgement)["arm2"].notes)


def test_other_data_and_other_configs_are_set_aside(records_of) -> None:
    design = make_design()
    found = records_of(design)
    foreign = replace(found[0], data_fingerprint="toy:2", seed=0)
    stale = replace(found[1], arm_hash="old")
    study = Study.of([*found[1:], foreign, stale], Design.from_json(design))
    assert sorted(study.set_aside.values()) == [1, 1]
    assert ("control", 0) not in study.cells and study.missing == 1


def test_seeds_added_later_join_the_earlier_ones(records_of) -> None:
    small, large = make_design(seeds=4), make_design(seeds=6)
    late = [make_record(large, arm["name"], seed) for arm in large["arms"] for seed in (4, 5)]
    study = Study.of([*records_of(small), *late])
    assert study.missing == 0 and study.design.seeds == tuple(range(6))


def test_a_study_is_rebuilt_from_records_alone(tmp_path, records_of) -> None:
    design = make_design()
    for record in records_of(design, {"arm1": -0.3}):
        run_record.write(record, tmp_path / record.run_hash)
    alone = judge(Study.load(tmp_path)).to_dict()
    (tmp_path / "design.json").write_text(json.dumps(design))
    assert judge(Study.load(tmp_path)).to_dict() == alone
    damaged = tmp_path / "arm1-0" / "record.json"
    damaged.write_text(damaged.read_text()[:100])
    broken = judge(Study.load(tmp_path))
    assert len(broken.study.unreadable) == 1 and "arm1-0" in broken.study.unreadable[0]
    assert broken.counts["missing"] == 1
    assert Study.load(tmp_path / "nothing") is None


def test_json_holds_every_number_and_nothing_that_json_cannot_say(records_of) -> None:
    found = records_of(make_design())
    found = [replace(r, metrics={**r.metrics, "load/max_vio": 1.0}) if "arm1" in r.run_hash else r for r in found]
    content = json.loads(json.dumps(judge(Study.of(found)).to_dict(), allow_nan=False))
    row = content["tables"][0]["rows"][1]
    assert {"estimate", "low", "high", "pvalue", "effect_size", "correlation", "n"} <= set(row["effect"])
    assert content["tables"][1]["rows"][1]["effect"]["correlation"] is None  # a constant has no correlation


@pytest.mark.parametrize("truth", [0.0, -0.3])
def test_error_rate_and_power_of_the_whole_path(truth: float) -> None:
    """Four arms, five seeds: some arm is called better in about 5 % of null studies, and in all with a real effect."""
    design, called = make_design(arms=4, seeds=5, margin=None), 0
    rng = np.random.default_rng(0)
    base = {(a["name"], s): make_record(design, a["name"], s) for a in design["arms"] for s in design["seeds"]}
    for _ in range(150):
        block = rng.normal(3, 1, 5)
        found = [
            replace(r, metrics={METRIC: block[s] + (truth if arm == "arm1" else 0) + rng.normal(0, 0.05)})
            for (arm, s), r in base.items()
        ]
        words = {row.verdict for row in judge(Study.of(found)).comparisons[0].rows}
        called += bool(words & {"better", "worse"})
    assert called / 150 < 0.105 if truth == 0 else called / 150 > 0.97


def test_arms_trained_on_different_data_are_not_compared(records_of) -> None:
    design = make_design() | {"data_fingerprint": "toy:1 toy:2"}
    found = [
        replace(r, data_fingerprint="toy:2") if r.arm_hash == "hash-arm1" else r
        for r in records_of(design, {"arm1": -1})
    ]
    judgement = judge(Study.of(found, Design.from_json(design)))
    assert rows(judgement)["arm1"].verdict == "no verdict" and "other data" in " ".join(rows(judgement)["arm1"].notes)
    assert rows(judgement)["arm2"].effect is not None and judgement.winner == "control"


def test_no_winner_while_runs_are_missing(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(), {"arm1": -1})[:-1]))
    assert judgement.winner is None and "1 run of the design still missing" in judgement.winner_reason


def test_a_metric_that_is_not_finite_counts_as_a_failed_run(records_of) -> None:
    design = make_design()
    records = records_of(design, {"arm1": -0.2})
    index = next(i for i, r in enumerate(records) if (r.study["arm"], r.seed) == ("arm1", 3))
    records[index] = replace(records[index], metrics=records[index].metrics | {METRIC: float("nan")})
    judgement = judge(Study.of(records))
    row = next(row for row in judgement.comparisons[0].rows if row.arm == "arm1")
    assert row.verdict == "better, among runs that finished (1 failed)" and judgement.winner == "control"
    assert f"1 finished runs have no finite {METRIC}, and count as failed" in row.notes


def test_a_better_arm_wins_though_the_control_lost_a_run(records_of) -> None:
    design = make_design()
    records = [fail(r) if (r.study["arm"], r.seed) == ("control", 2) else r for r in records_of(design, {"arm1": -0.2})]
    judgement = judge(Study.of(records))
    assert judgement.winner == "arm1" and "the control lost 1 of its runs" in judgement.winner_reason
    assert "the control lost 1 of its runs" in judgement.comparisons[0].rows[1].notes


def test_failures_are_named_beside_every_verdict_in_readable_words(records_of) -> None:
    design = make_design(arms=3)
    lost = {("arm1", 1), ("arm2", 4)}
    records = [
        fail(r) if (r.study["arm"], r.seed) in lost else r for r in records_of(design, {"arm1": 0.2}, noise=0.05)
    ]
    judgement = judge(Study.of(records))
    assert all("(1 failed)" in row.verdict for row in judgement.comparisons[0].rows[1:])
    assert "“arm1 label” is worse than the control by" in judgement.headline
    assert "among runs that finished (1 failed)" in judgement.headline


def test_a_run_that_failed_before_its_data_was_read_is_failed_and_not_missing(records_of) -> None:
    design = make_design()
    records = records_of(design)
    records[-1] = replace(fail(records[-1]), data_fingerprint="")
    judgement = judge(Study.of(records))
    assert judgement.counts == {"complete": 17, "failed": 1, "missing": 0}
    assert judgement.comparisons[0].rows[2].effect is not None


def test_planned_contrasts_compare_two_arms_with_each_other(records_of) -> None:
    design = make_design(arms=4) | {"contrasts": [["arm1", "arm2"], ["arm1", "arm3"]]}
    judgement = judge(Study.of(records_of(design, {"arm1": -0.3, "arm2": -0.3, "arm3": 0.1}, noise=0.002)))
    same, better = judgement.found["contrasts"]
    assert (same.verdict, better.verdict) == ("equivalent within the margin", "better")
    assert better.effect.estimate == pytest.approx(-0.4, abs=0.01) and better.label == "arm1 label − arm3 label"
    assert "Planned contrasts" in judgement.headline


def test_a_contrast_counts_failures_and_missing_pairs(records_of) -> None:
    design = make_design(arms=3) | {"contrasts": [["arm1", "arm2"]]}
    found = records_of(design, {"arm1": -0.3})
    found = [replace(r, status="failed", reason="x") if r.run_hash == "arm1-0" else r for r in found]
    [row] = judge(Study.of(found)).found["contrasts"]
    assert row.verdict == "better, among runs that finished (1 failed)"
    assert row.effect.n == 5 and "compared on 5 of 6 seeds" in " ".join(row.notes)


def test_every_arm_has_a_learning_speed(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(), {"arm1": -0.3})))
    faster, equal = judgement.found["speeds"]
    assert faster.speed.high < 1 and faster.speed.reached == 6 and faster.p_holm < 0.05
    assert equal.speed.low < 1 < equal.speed.high


def test_a_whole_factorial_has_main_effects_and_interactions(records_of) -> None:
    design = make_design(arms=4)
    design["factors"] = [
        {"key": "model.router.kind", "label": "router", "levels": ["topk", "film"]},
        {"key": "model.top_k", "label": "top-k", "levels": [1, 2]},
    ]
    corners = [("topk", 1), ("film", 1), ("topk", 2), ("film", 2)]
    for arm, (kind, k) in zip(design["arms"], corners, strict=True):
        arm["settings"] = {"model.router.kind": kind, "model.top_k": k}
    found = records_of(design, {"arm1": -0.1, "arm2": 0.2, "arm3": -0.2}, noise=0.002)
    judgement = judge(Study.of(found))
    [crossing] = judgement.found["interactions"].contrasts
    assert crossing.effect.estimate == pytest.approx(-0.2 - 0.2 + 0.1, abs=0.01) and crossing.p_holm < 1e-4
    assert {c.factors[0] for c in judgement.found["main_effects"].contrasts} == {"router", "top-k"}
    lost = [r for r in found if (r.seed, r.run_hash.split("-")[0]) != (0, "arm1")]
    assert "5 of 6 seeds" in judge(Study.of(lost)).found["factorial_note"]
    assert judge(Study.of(records_of(make_design()))).found.get("interactions") is None
    json.dumps(judgement.to_dict(), allow_nan=False)


def test_a_design_that_cannot_reach_significance_is_called_exploratory(records_of) -> None:
    judgement = judge(Study.of(records_of(make_design(seeds=2))))
    weak = judgement.found["exploratory"]
    assert weak in judgement.headline and "Exploratory: 2 seeds for 2 arms" in weak
    assert judge(Study.of(records_of(make_design(seeds=6)))).found["exploratory"] == ""


def test_arms_of_different_data_are_compared_nowhere(records_of) -> None:
    design = make_design(arms=4) | {"contrasts": [["arm1", "arm2"]], "data_fingerprint": "toy:1 toy:2"}
    design["factors"] = [
        {"key": "data.corpus", "label": "corpus", "levels": ["toy", "other"]},
        {"key": "model.num_kv_heads", "label": "heads", "levels": [None, 1]},
    ]
    corners = [("toy", None), ("other", None), ("toy", 1), ("other", 1)]
    for arm, (corpus, heads) in zip(design["arms"], corners, strict=True):
        arm["settings"] = {"data.corpus": corpus, "model.num_kv_heads": heads}
    found = records_of(design, {"arm1": 1.0})
    whole = judge(Study.of(found))
    levels = {c.levels for c in whole.found["main_effects"].contrasts}
    assert levels == {("other",), ("1",)}  # None is a level like any other
    found = [replace(r, data_fingerprint="toy:2") if r.run_hash.startswith(("arm1", "arm3")) else r for r in found]
    judgement = judge(Study.of(found))
    [contrast], speed = judgement.found["contrasts"], judgement.found["speeds"][0]
    assert contrast.verdict == "no verdict" and "other data" in contrast.notes[0]
    assert speed.speed is None and "other data" in speed.note
    assert judgement.found.get("main_effects") is None and "different data" in judgement.found["factorial_note"]
    assert "Planned contrasts" not in judgement.headline


def test_a_bound_against_an_exact_likelihood_gets_its_own_words(records_of) -> None:
    design = make_design(arms=5)
    kinds = ("bound", "exact", "exact", "bound", "tuned")
    for arm, kind in zip(design["arms"], kinds, strict=True):
        arm["likelihood"] = {"kind": kind, "of": "sequences", "tokenizer": "bytes"}
    effects = {"arm1": -0.3, "arm2": 0.3, "arm3": -0.2, "arm4": -0.5}
    judgement = judge(Study.of(records_of(design, effects, noise=0.005)))
    found = rows(judgement)
    assert found["arm1"].verdict == "lower, a bound against an exact likelihood"
    assert found["arm2"].verdict == "worse"  # the control's bound is below: that proves it
    assert found["arm3"].verdict == "better" and judgement.winner == "arm3"
    assert found["arm4"].verdict == "no verdict" and found["arm4"].effect is None
    assert "a model tuned to preferences isn't one of the text's likelihood" in " ".join(found["arm4"].notes)
    words = "“arm1 label” is lower than the control by 0.3 nats/token (a bound against an exact likelihood)"
    assert words in judgement.headline
    primary, secondary = judgement.comparisons
    assert primary.likelihoods.startswith("control label, arm3 label: bounds") and not secondary.likelihoods
    other = {**design, "control": "arm1", "arms": [design["arms"][1], design["arms"][0], *design["arms"][2:]]}
    swapped = rows(judge(Study.of(records_of(design, effects, noise=0.005), Design.from_json(other))))
    assert swapped["control"].verdict == "higher, a bound against an exact likelihood"
    assert swapped["arm2"].verdict == "worse"  # both exact


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kind": "tuned"}, "tuned to preferences"), ({"of": "responses"}, "of sequences"),
     ({"tokenizer": "t.json"}, "tokens of"), ({"kind": "exact"}, "a bound and")],
)  # fmt: skip
def test_arms_whose_numbers_are_not_comparable_get_no_p_value_anywhere(records_of, change: dict, said: str) -> None:
    """Not in tables, speeds, factorial effects, looks, figures or files; a lower exact number proves nothing either."""
    design = make_design(arms=4) | {"contrasts": [["arm1", "arm2"]], "secondary": ["load/max_vio"]}
    design["factors"] = [
        {"key": "objective.kind", "label": "objective", "levels": ["a", "b"]},
        {"key": "model.top_k", "label": "top-k", "levels": [1, 2]},
    ]
    plain = {"kind": "bound", "of": "sequences", "tokenizer": "bytes"}
    corners = [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    for arm, (objective, k) in zip(design["arms"], corners, strict=True):
        arm["settings"] = {"objective.kind": objective, "model.top_k": k}
        arm["likelihood"] = plain | (change if objective == "b" else {})
    study = Study.of(records_of(design, {"arm1": -0.3, "arm2": -0.2, "arm3": -0.4}))
    judgement = judge(study)
    speeds = {row.arm: row for row in judgement.found["speeds"]}
    assert speeds["arm2"].p_holm is not None  # of the control's kind
    for arm in ("arm1", "arm3"):
        assert speeds[arm].speed is None and speeds[arm].p_holm is None and speeds[arm].note
    assert judgement.found.get("main_effects") is None and judgement.found.get("interactions") is None
    assert said in judgement.found["factorial_note"]
    by_name = {table.name: table for table in tables_on(judgement.tables, "file")}
    assert "main-effects" not in by_name and "interactions" not in by_name
    assert [row["arm"] for row in by_name["learning-speed"].exact] == ["arm2"]
    if change == {"kind": "exact"}:
        return  # a bound against an exact likelihood keeps its p-value in the table, with its words
    judged = {row.arm: row for row in judgement.comparisons[0].rows}
    assert all(judged[arm].effect is None and judged[arm].p_holm is None for arm in ("arm1", "arm3"))
    assert judgement.found["contrasts"][0].p_holm is None and all(
        row.p_holm is None for row in running(study).contrasts
    )
    differences = bands(study, "validation", design["metric"], minus_control=True)
    assert [one.name for one in differences] == ["arm2 label"]
    unlikely = bands(study, "validation", "load/max_vio", minus_control=True)  # no likelihood
    assert "arm1 label" in {one.name for one in unlikely}
    bought = Study.of(
        records_of(design), Rule(first=3, fixed=6).designed(Design.from_json(design), dict.fromkeys(study.arms, 6))
    )
    decided = {step.arms[0]: step for look in sequential_run(bought).looks for step in look.steps}
    assert decided["arm2"].n and decided["arm1"].decision == "lost" and decided["arm1"].p_holm is None


def test_seeds_that_were_added_after_the_first_are_told(records_of) -> None:
    first = records_of(make_design(seeds=4))
    added = [record for record in records_of(make_design(seeds=6)) if record.seed >= 4]
    told = judge(Study.of([*first, *added], Design.from_json(make_design(seeds=6)))).headline
    assert "4 were planned first, then 6" in told and "--until-decided" in told
    assert "planned first" not in judge(Study.of(records_of(make_design(seeds=6)))).headline
