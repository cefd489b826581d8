"""Rows of logs as runs: what is read, and what is refused rather than guessed."""

import math

import pytest
from scipy import stats

from analysis.logs.runs import Columns, cut_to, runs_of
from analysis.logs.study import Asked, goal_of, study_of
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.records.log_rows import Log, LogRow
from core.records.metrics import METRICS
from tests.registries import kept

LONG = Columns(("loss",), "seed", "arm")
CURVES = Columns(("loss",), "seed", "arm", step="step")


@pytest.fixture(autouse=True)
def own_metrics():
    """The registry of metrics as it was, for the tests that follow."""
    with kept(METRICS):
        yield


def log(*rows):
    return Log("runs.csv", tuple(LogRow(f"row {number}", row) for number, row in enumerate(rows, 1)))


def row(arm, seed, loss, **more):
    return {"arm": arm, "seed": seed, "loss": loss, **more}


def judged(columns, *rows):
    runs = runs_of(log(*rows), columns)
    cut_to(runs, list(columns.metrics), None, as_they_end=False)
    return runs


def curve(arm, seed, *losses):
    return [row(arm, seed, loss, step=step) for step, loss in enumerate(losses, 1)]


def test_a_row_is_a_run_and_unchanging_columns_are_its_settings():
    first, second = runs_of(log(row("a", "0", "2.5", lr="0.1"), row("b", "0", "1e-3", lr="0.2")), LONG)
    assert (first.arm, first.seed, first.values, first.settings) == ("a", 0, {"loss": {0.0: 2.5}}, {"lr": "0.1"})
    assert second.values["loss"][0.0] == 1e-3


def test_rows_of_steps_are_a_curve_whose_parts_may_be_logged_apart():
    rows = [row("a", 0, 3.0, step=1), row("a", 0, "", step=2, acc=0.5), row("a", 0, 2.0, step=2, acc="")]
    (run,) = runs_of(log(*rows), Columns(("loss", "acc"), "seed", "arm", step="step"))
    assert run.values == {"loss": {1.0: 3.0, 2.0: 2.0}, "acc": {2.0: 0.5}}


def test_a_wide_row_has_a_run_for_each_arm():
    runs = runs_of(log({"seed": 3, "a": 1.0, "b": 2.0}), Columns(("loss",), "seed", wide=("a", "b")))
    assert [(run.arm, run.seed, run.values["loss"][0.0]) for run in runs] == [("a", 3, 1.0), ("b", 3, 2.0)]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([row("a", 0, 1.0), row("a", 0, 2.0)], LONG, "row 2: a, seed 0 has loss=2, and 1 before.*--step"),
        ([row("a", 0, 1.0), row("a", 0, 1.0)], LONG, "row 2: a, seed 0 comes twice"),
        ([row("a", 0, 1.0, step=1), row("a", 0, 2.0, step=1)], CURVES, "row 2: a, seed 0, step 1 has loss=2, and 1"),
        ([row("a", 0, "fast")], LONG, "row 1: loss='fast' is no number"),
        ([row("a", "first", 1.0)], LONG, "row 1: seed='first' is no seed"),
        ([row("a", 0.5, 1.0)], LONG, "row 1: seed='0.5' is no seed"),
        ([row("a", -1, 1.0)], LONG, "row 1: seed='-1' is no seed"),
        ([row("a", True, 1.0)], LONG, "row 1: seed='True' is no seed"),
        ([row("a", 0, 10**400)], LONG, "row 1: loss has 401 digits"),
        ([row("", 0, 1.0)], LONG, "row 1: the arm is missing"),
        ([row("a", 0, 1.0)], Columns(("seed",), "seed", "arm"), "--metric: 'seed' is the column of the seed"),
        ([{"seed": 0, "a": 1.0}], Columns(("loss",), "seed", wide=("a", "seed")), "--arms: 'seed' is the column of the seed"),
        ([{"seed": 0, "a": 1.0}], Columns(("loss",), "seed", wide=("a", "a")), "--arms: 'a' is given twice"),
        ([row("a", 0, 1.0, step="")], CURVES, "row 1: the step .step. is missing"),
        ([row("a", 0, 1.0)], Columns(("los",), "seed", "arm"), "--metric: runs.csv has no column 'los': did you mean loss"),
        ([row("a", 0, 1.0)], Columns(("loss",), "sed", "arm"), "--seed: runs.csv has no column 'sed': did you mean seed"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused_with_its_row(rows, columns, message):
    with pytest.raises(UserError, match=message):
        runs_of(log(*rows), columns)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("nan", "its loss is nan"), ("inf", "its loss is inf"), ("", "it has no loss"), (math.nan, "its loss is nan")],
)
def test_a_run_without_a_finite_last_value_failed(value, reason):
    assert judged(LONG, row("a", 0, value))[0].trouble == reason


def test_a_run_that_was_not_finished_failed():
    rows = [row("a", seed, 1.0, state=state) for seed, state in enumerate(("finished", "crashed", "pruned"))]
    runs = runs_of(log(*rows), Columns(("loss",), "seed", "arm", status="state"))
    assert [run.trouble for run in runs] == ["", "its state is crashed", "its state is pruned"]


def test_the_status_of_a_curve_is_that_of_its_last_step_whatever_the_order_of_rows():
    columns = Columns(("loss",), "seed", "arm", step="step", status="state")
    rows = [
        row("a", 0, 1.0, step=2, state="finished"),
        row("a", 0, 2.0, step=1, state="running"),
        row("b", 0, 1.0, step=1),
    ]
    assert [run.trouble for run in runs_of(log(*rows), Columns(("loss",), "seed", "arm", step="step"))] == ["", ""]
    rows[2]["state"] = ""
    assert [run.trouble for run in runs_of(log(*rows), columns)] == ["", "it has no state"]


def test_seeds_are_told_apart_to_the_last_digit():
    rows = [row("a", 2**53 + n, 1.0) for n in range(3)] + [row("b", "007", 1.0), row("b", "3.0", 1.0)]
    assert [run.seed for run in runs_of(log(*rows), LONG)] == [2**53, 2**53 + 1, 2**53 + 2, 7, 3]


def test_a_metric_may_be_called_arm():
    (run,) = runs_of(log({"method": "a", "seed": 0, "arm": 2.0}), Columns(("arm",), "seed", "method"))
    assert (run.arm, run.values) == ("a", {"arm": {0.0: 2.0}})


def test_mixed_budgets_are_refused_cut_or_said():
    rows = [*curve("a", 0, 3.0, 2.0, 1.0), *curve("b", 0, 3.0, 2.5)]
    with pytest.raises(UserError, match=r"step 2: b \(seed 0\); step 3: a \(seed 0\)\): --at 2 compares"):
        cut_to(runs_of(log(*rows), CURVES), ["loss"], None, as_they_end=False)
    runs = runs_of(log(*rows), CURVES)
    assert cut_to(runs, ["loss"], 2.0, as_they_end=False) == ["Runs are compared at step 2; some go on to step 3"]
    assert [run.last("loss") for run in runs] == [2.0, 2.0]
    assert "different budgets" in cut_to(runs_of(log(*rows), CURVES), ["loss"], None, as_they_end=True)[0]


def test_a_secondary_metric_is_compared_at_one_step_too():
    columns = Columns(("loss", "acc"), "seed", "arm", step="step")
    rows = [row("a", 0, 1.0, step=1, acc=0.5), row("a", 0, 1.0, step=2, acc=0.9)]
    rows += [row("b", 0, 1.0, step=1, acc=0.5), row("b", 0, 1.0, step=2)]
    with pytest.raises(UserError, match=r"different steps in acc \(step 1: b \(seed 0\); step 2: a"):
        cut_to(runs_of(log(*rows), columns), ["loss", "acc"], None, as_they_end=False)
    runs = runs_of(log(*rows), columns)
    cut_to(runs, ["loss", "acc"], 2.0, as_they_end=False)
    assert [run.last("acc") for run in runs] == [2.0, None]


def test_what_comes_after_the_step_does_not_count():
    runs = runs_of(log(*curve("a", 0, 3.0, 2.0, math.nan), *curve("b", 0, 3.0, 2.5, 1.0)), CURVES)
    cut_to(runs, ["loss"], 2.0, as_they_end=False)
    assert [run.trouble for run in runs] == ["", ""]


def test_a_run_without_a_value_at_the_step_is_left_out():
    runs = runs_of(log(*curve("a", 0, 3.0, 2.0), *curve("b", 0, 3.0), *curve("c", 0, 3.0, math.nan, 1.0)), CURVES)
    cut_to(runs, ["loss"], 2.0, as_they_end=False)
    assert [run.trouble for run in runs] == ["", "it has no loss at step 2", "its loss is nan at step 2"]


@pytest.mark.parametrize(
    ("metric", "said", "goal"), [("eval_loss", None, "min"), ("acc", "max", "max"), ("load/entropy", None, "max")]
)
def test_the_better_direction_is_said_or_known(metric, said, goal):
    assert goal_of(metric, said)[0] == goal


def test_an_unknown_direction_is_asked_for():
    with pytest.raises(UserError, match="--metric acc: which is better\\? Write acc:min or acc:max"):
        goal_of("acc", None)


def asked(**changes):
    return Asked(**{"name": "logs", "question": "Better?", "control": "a", "goals": {"loss": "min"}} | changes)


def test_the_verdict_is_that_of_the_same_numbers():
    """Differences of -1, -1.1 and -0.9 have mean -1 and standard deviation 0.1: t = -17.32 with 2 degrees of freedom."""
    rows = [row("a", s, 2.0 + s) for s in range(3)] + [row("b", s, 2.0 + s + d) for s, d in enumerate((-1, -1.1, -0.9))]
    answer = judge(study_of(runs_of(log(*rows), LONG), asked(), ["runs.csv"], [], step=None))
    effect = answer.comparisons[0].rows[1].effect
    assert effect.estimate == pytest.approx(-1) and effect.sd == pytest.approx(0.1)
    assert effect.pvalue == pytest.approx(stats.ttest_1samp([-1, -1.1, -0.9], 0).pvalue)
    assert answer.winner == "b"
    assert "common random numbers" not in answer.methods


def test_missing_seeds_and_what_logs_cannot_tell_are_said():
    rows = [row("a", s, float(s)) for s in range(4)] + [row("b", s, 1.1 * s + 0.1) for s in (0, 1, 3)]
    answer = judge(study_of(runs_of(log(*rows), LONG), asked(), ["runs.csv"], [], step=None))
    said = " ".join(answer.notes)
    assert "b has no run of seed 2" in said
    assert answer.comparisons[0].rows[1].effect.n == 3
    for unknown in ("initial weights and data order", "same data", "equally long"):
        assert unknown in said


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([row("a", 0, 1.0), row("b", 0, 1.0)], {"control": "A1"}, "--control: no run is of 'A1'"),
        ([row("a", 0, 1.0), row("a", 1, 1.0)], {}, "all runs are of 'a'"),
        (
            [row("a", 0, 1.0), row("b", 5, 1.0)],
            {},
            r"no seed has a run of a \(seeds 0\) and of another arm \(seeds 5\)",
        ),
        ([row("a", 0, 1.0), row("b", 0, 1.0)], {"goals": {"val/nelbo": "max"}}, "min is the better direction of NELBO"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows, changes, message):
    columns = Columns(tuple(changes.get("goals", {"loss": ""})), "seed", "arm")
    named = [{**each, columns.metrics[0]: each["loss"]} for each in rows]
    with pytest.raises(UserError, match=message):
        study_of(runs_of(log(*named), columns), asked(**changes), ["runs.csv"], [], step=None)
