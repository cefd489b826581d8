"""`ablate judge`: the command on files, from what is typed to the page."""

import json

import pytest

from ablations.__main__ import main
from core.records.metrics import METRICS
from tests.registries import kept

HEAD = "method,seed,step,loss,acc\n"


@pytest.fixture(autouse=True)
def own_metrics():
    """The registry of metrics as it was, for the tests that follow."""
    with kept(METRICS):
        yield


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Curves of two methods over four seeds, the second better by about 0.2."""
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{method},{seed},{step},{3 - step / 100 + (0.1 - better / 100) * seed - better},{0.5 + 0.01 * seed * (1 + better)}\n"
        for seed in range(4)
        for method, better in (("baseline", 0.0), ("mine", 0.2))
        for step in (10, 20, 30)
    ]
    (tmp_path / "runs.csv").write_text(HEAD + "".join(rows))
    return ["judge", "runs.csv", "--arm", "method", "--control", "baseline", "--metric", "loss", "--step", "step"]


def test_a_verdict_page_and_files(runs, tmp_path, capsys):
    assert main([*runs, "--metric", "acc:max", "--files", "files"]) == 0
    out = capsys.readouterr().out
    assert "“mine” is better than the control by 0.2" in out
    assert "acc (secondary)" in out and "A smaller loss is taken to be better" in out
    page = (tmp_path / "runs/runs/report.html").read_text()
    assert "another program trained them" in page
    for absent in ("parameters (active)", "common random numbers", "raining tokens"):
        assert absent not in page
    assert {"loss.csv", "acc.csv", "curves.svg", "effects.pdf"} <= {
        path.name for path in (tmp_path / "files").iterdir()
    }


def test_json_has_what_a_study_has(runs, capsys):
    assert main([*runs, "--json", "--margin", "0.5", "--question", "Is mine better?"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["question"] == "Is mine better?" and answer["winner"] == "mine"
    assert answer["counts"] == {"complete": 8, "failed": 0, "missing": 0}
    assert answer["design"]["logs"]["sources"] == ["runs.csv"] and answer["design"]["margin"] == 0.5


def test_text_of_logs_is_escaped_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"<script>alert(1)</script>,{seed},{seed / 7}\nb,{seed},{seed / 5}\n" for seed in range(3))
    (tmp_path / "runs.csv").write_text("arm,seed,loss\n" + rows)
    assert main(["judge", "runs.csv", "--control", "b", "--metric", "loss"]) == 0
    assert "<script>alert" not in (tmp_path / "runs/runs/report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--metric", "acc"], "--metric acc: which is better? Write acc:min or acc:max"),
        (["--metric", "loss"], "--metric loss is given twice"),
        (["--arms", "baseline,mine"], "--arms names a column for each arm"),
        (["--at", "soon"], "--at soon: a step is needed"),
        (["--at", "15"], "--at 15: no run has loss at this step"),
        (["--alpha", "2"], "alpha must lie in (0, 1)"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--pattern", "x", "--seed", "sed"], "--seed: runs.csv has no column 'sed': did you mean seed?"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(runs, tmp_path, capsys, changed, message):
    assert main([*runs, *changed]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_studys_own_folder_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "runs/runs").mkdir(parents=True)
    (tmp_path / "runs/runs/design.json").write_text("{}")
    assert main(runs) == 2
    assert "holds the runs of a study" in capsys.readouterr().err


def test_the_arm_is_asked_for_with_the_columns_there_are(runs, capsys):
    assert main(["judge", "runs.csv", "--control", "baseline", "--metric", "loss"]) == 2
    assert "--arm: name the column of a run's arm (there are method, seed, step, loss, acc)" in capsys.readouterr().err
