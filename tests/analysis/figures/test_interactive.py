import numpy as np
import pytest

from analysis.figure import ARM_COLOURS
from analysis.figures import interactive as charts
from analysis.study import Study
from analysis.verdicts.arm_figures import bands, expert_load
from analysis.verdicts.judge import judge
from tests.analysis.conftest import METRIC, make_design


def drawn(found):
    study = Study.of(found)
    return study, charts.charts(judge(study).figures)


def test_curves_are_the_bands_that_paper_shows(records_of) -> None:
    study, found = drawn(records_of(make_design(), {"arm1": -0.3}))
    views = {view["title"]: view for view in found["curves"]["views"]}
    band = next(one for one in bands(study, "validation", METRIC) if one.name == "arm1 label")
    series = next(one for one in views["NELBO, nats/token"]["series"] if one["name"] == "arm1 label")
    assert series["y"] == pytest.approx(band.y, rel=1e-4) and series["low"] == pytest.approx(band.low, rel=1e-4)
    assert series["colour"] == ARM_COLOURS[1] and len(series["seeds"]) == 6
    paired = views["NELBO, nats/token: arm − control"]
    assert paired["zero"] and [one["name"] for one in paired["series"]] == ["arm1 label", "arm2 label"]
    runs = {one["seed"]: one["y"] for one in paired["series"][0]["seeds"]}
    value = study.values("arm1", METRIC) - study.values("control", METRIC)
    assert [runs[seed][-1] for seed in range(6)] == pytest.approx(value, abs=1e-4)


def test_many_points_and_runs_are_thinned_and_ends_are_kept(records_of) -> None:
    found = records_of(make_design(arms=2, seeds=110))
    for record in found:
        record.validation.update({key: list(range(1000)) for key in record.validation})
    _, charted = drawn(found)
    series = charted["curves"]["views"][0]["series"][0]
    assert len(series["x"]) == charts.MOST_POINTS and (series["x"][0], series["x"][-1]) == (0, 999)
    assert series["seeds"] == []


def test_effects_are_the_tables(records_of) -> None:
    study, found = drawn(records_of(make_design(), {"arm1": -0.3}))
    row = judge(study).comparisons[0].rows[1]
    shown = found["effects"]["views"][0]
    assert shown["margin"] == 0.02 and shown["rows"][0]["kind"] == "better"
    assert shown["rows"][0]["at"] == pytest.approx([row.effect.estimate, row.effect.low, row.effect.high], rel=1e-4)


def test_a_heatmaps_frames_are_shares_of_the_balanced_one(records_of) -> None:
    found = records_of(make_design(arms=2))
    for record in found:
        load = np.random.default_rng(record.seed).dirichlet(np.ones(8), (4, 10, 2))
        load[2, 0, 1] = np.nan
        record.routing["load_by_timestep"] = load.tolist()
    _, charted = drawn(found)
    chart = charted["timestep"]
    assert len(chart["values"]) == 10 and chart["values"][0] == "0 to 0.1" and chart["seed"] == 0
    masked = next(one for one in chart["panels"] if (one["arm"], one["name"]) == ("control label", "masked tokens"))
    load = np.array(found[0].routing["load_by_timestep"])
    assert masked["frames"][3][1] == [round(1000 * 8 * share) for share in load[1, 3, 1]]
    assert masked["frames"][0][2] == [None] * 8
    assert charted["load"]["ranked"] and "ranked" not in chart
    heaviest_first = charted["load"]["panels"][0]["frames"][-1][0]
    assert heaviest_first == sorted(heaviest_first, reverse=True) and charted["load"]["start"] == 2


def test_a_heatmap_that_would_weigh_megabytes_stays_on_paper(records_of, monkeypatch) -> None:
    monkeypatch.setattr(charts, "MOST_CELLS", 100)
    _, charted = drawn(records_of(make_design()))
    assert "load" not in charted and "effects" in charted


def test_loads_at_steps_that_differ_stay_on_paper_where_no_arm_is_lost(records_of) -> None:
    found = records_of(make_design())
    found[3].expert_load["step"] = [10, 20, 40]
    study, charted = drawn(found)
    assert "load" not in charted and len(expert_load(study).data.panels) == 3
