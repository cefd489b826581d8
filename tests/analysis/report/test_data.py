"""The Python interface: data frames, answers that display themselves, axes, and runs.csv and curves.csv."""

import csv
import subprocess
import sys
from dataclasses import replace

import matplotlib.axes
import pytest

import analysis
from analysis import curves, judge, load_study, plot, runs
from analysis.report.files import write_files
from core.errors import UserError
from core.records import run_record
from tests.analysis.conftest import METRIC, make_design

CURVE = {"step": [1, 2], "tokens": [10.0, 20.0], "train/nelbo": [3.0, 2.0]}


@pytest.fixture
def folder(tmp_path, records_of):
    """Three arms under six seeds, of which the first run failed and the last is missing."""
    first, *others, _ = records_of(make_design(), {"arm1": -0.3})
    records = [replace(first, status="failed", reason="boom", metrics={}), *others]
    for record in records:
        run_record.write(replace(record, curve=CURVE), tmp_path / record.run_hash)
    return tmp_path


def test_a_frame_of_runs_has_every_run_of_the_design(folder) -> None:
    study = load_study(folder)
    frame = runs(study)
    assert len(frame) == 18 and list(frame.columns)[:2] == ["arm", "label"]
    assert frame["status"].value_counts().to_dict() == {"complete": 16, "failed": 1, "missing": 1}
    means = frame.groupby("arm")[METRIC].mean()
    effect = judge(study).comparisons[0].rows[1].effect
    paired = frame.pivot(index="seed", columns="arm", values=METRIC)
    assert (paired["arm1"] - paired["control"]).mean() == pytest.approx(effect.estimate)
    assert means["arm1"] < means["control"]


def test_a_frame_of_curves_has_a_row_for_each_number(folder) -> None:
    frame = curves(load_study(folder))
    train = frame[(frame["split"] == "train") & (frame["metric"] == "train/nelbo")]
    assert len(train) == 2 * 17
    assert sorted(set(train["value"])) == [2.0, 3.0] and set(train["step"]) == {1, 2}


def test_frames_are_of_the_library_that_is_asked_for(folder, monkeypatch) -> None:
    polars = pytest.importorskip("polars")
    assert isinstance(runs(load_study(folder), "polars"), polars.DataFrame)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UserError, match="a data frame takes the package polars: pip install polars"):
        runs(load_study(folder), "polars")


def test_an_answer_displays_itself_and_escapes_what_it_shows(folder) -> None:
    study = load_study(folder)
    arms = tuple(replace(arm, label=f"<b>{arm.name}</b>") for arm in study.design.arms)
    answer = judge(replace(study, design=replace(study.design, arms=arms)))
    html = answer._repr_html_()
    assert "&lt;b&gt;arm1&lt;/b&gt;" in html and "<b>arm1" not in html
    assert html.count("<table>") == len([table for table in answer.tables if "page" in table.on and table.columns])


def test_figures_are_axes(folder) -> None:
    answer = judge(load_study(folder))
    axes = plot(answer, "effects")
    assert all(isinstance(axis, matplotlib.axes.Axes) for axis in axes) and "arm − control" in axes[0].get_xlabel()
    with pytest.raises(UserError, match="no figure 'efects': did you mean effects"):
        plot(answer, "efects")


def test_files_hold_runs_and_curves_in_full(folder, tmp_path) -> None:
    answer = judge(load_study(folder))
    write_files(answer, tmp_path / "files")
    with (tmp_path / "files/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    frame = runs(answer.study)
    assert [row["seed"] for row in rows] == [str(seed) for seed in frame["seed"]]
    assert float(rows[1][METRIC]) == frame[METRIC][1] and rows[0][METRIC] == ""
    with (tmp_path / "files/curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(curves(answer.study))


def test_a_folder_without_records_is_refused(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no records of a study"):
            load_study(path)


def test_the_package_itself_loads_nothing() -> None:
    script = "import sys, analysis; print(sorted({'numpy', 'matplotlib', 'analysis.study'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"judge", "load_study"} <= set(analysis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'judgement'"):
        analysis.judgement  # noqa: B018
