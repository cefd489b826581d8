"""Poller: its state equals that of reading everything again, whatever was read before."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ablations.dashboard import poller as watching
from ablations.dashboard.curves import POINTS, RecordReader, band
from ablations.dashboard.poller import Poller
from ablations.dashboard.server import Page, application
from analysis.figure import ARM_COLOURS
from analysis.study import Study
from analysis.verdicts.interim import running
from core.errors import UserError
from core.records import run_record
from core.records.designs import FILE_NAME as DESIGN_FILE
from sweeps.launch.worker import StopSignal, Worker
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.storage.storage import default_url, open_storage
from tests.ablations.dashboard.half_done import begin, path_of, record_of
from tests.ablations.dashboard.test_server import ask
from tests.benchmarks import dashboard
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import declare

REASON = "TrainingDivergedError: training diverged at step 7"


def told(poller: Poller) -> dict:
    """All sections after a look."""
    poller.look()
    return json.loads(poller.state.since("")[1])["sections"]


def watch(sweep) -> Poller:
    return Poller(sweep.planned.study_name, sweep.out, None, "ablate report toy.py")


def test_a_page_that_was_kept_equals_one_from_reading_everything_anew(tmp_path) -> None:
    sweep = begin(tmp_path)
    kept = watch(sweep)
    assert told(kept)["progress"]["counts"] == {"queued": 24}
    for change in (
        lambda: sweep.finish(7), lambda: sweep.finish(1, REASON), lambda: sweep.train(3), lambda: sweep.finish(5),
        lambda: shutil.rmtree(path_of(sweep, sweep.planned.runs[0]).parent),
        lambda: path_of(sweep, sweep.planned.runs[1]).write_text('{"half'),
    ):  # fmt: skip
        change()
        now, anew = told(kept), told(watch(sweep))
        for each in (now, anew):  # what depends on the clock
            each["progress"].pop("seconds_left")
            each["workers"] = [row | {"seconds_left": None, "rate": None} for row in each["workers"]]
        assert now == anew
    assert now["failures"]["unreadable"][0].endswith(
        "not JSON: Unterminated string starting at: line 1 column 2 (char 1)"
    )
    before = kept.state.revision
    kept.look()
    assert json.loads(kept.state.since(before)[1])["sections"].keys() <= {"progress", "workers"}  # the time left


def test_what_is_said_of_a_sweep_on_its_way(tmp_path) -> None:
    sweep = begin(tmp_path)
    sweep.finish(9)
    sweep.finish(1, REASON)
    sweep.finish(4)
    claim = sweep.train(3)
    found = told(watch(sweep))
    assert found["trouble"] == [] and found["head"]["question"] == sweep.planned.design.question
    assert found["progress"]["counts"] == {"queued": 9, "running": 1, "finished": 13, "failed": 1}
    assert [sum(arm["states"].values()) for arm in found["progress"]["arms"]] == [8, 8, 8]
    (row,) = found["workers"]
    assert row["label"].endswith(f", seed {claim.run.seed}") and (row["step"], row["steps"]) == (15, 30)
    assert row["seen"] > 1.7e9 and row["where"] and row["loss"] == pytest.approx(record_loss(claim.run), rel=1e-5)
    (failure,) = found["failures"]["reasons"]
    assert failure["reason"] == REASON and failure["count"] == 1 and failure["runs"][0].endswith("seed 3")
    study = Study.load(sweep.folder)
    for shown, row in zip(found["verdict"]["families"][0]["rows"], running(study).against_control, strict=True):
        assert (shown["low"], shown["high"]) == pytest.approx((row.low, row.high), rel=1e-5)
        assert shown["verdict"] == row.verdict and shown["n"] == row.n and shown["planned"] == 8
    arms = [found[f"curve {place}"] for place in range(found["curves"]["arms"])]
    assert [(chart["name"], chart["label"]) for chart in found["curves"]["charts"]] == [
        ("validation", "NELBO"), ("loss", "training NELBO"), ("load/max_vio", "MaxVio"),  # a registered chart
    ]  # fmt: skip
    assert set(arms[0]["load/max_vio"]["mean"]) == {0.5}
    ended = {arm["name"]: arm["validation"]["n"] for arm in arms}
    finished = sum(record.status == "complete" for record in study.records_of(claim.run.arm))
    assert ended[claim.run.arm] == [finished + 1] * 3 + [finished] * 3  # the run in training came half as far


def record_loss(run) -> float:
    from tests.ablations.dashboard.half_done import losses_of

    return losses_of(run)[2]


def test_a_file_is_read_once_unless_it_changed_and_kept_without_what_isnt_shown(tmp_path, monkeypatch) -> None:
    sweep = begin(tmp_path, seeds=2)
    sweep.finish(4)
    read, really = [], run_record.read
    monkeypatch.setattr("ablations.dashboard.curves.run_record.read", lambda path: read.append(path) or really(path))
    reader = RecordReader(sweep.folder, ("val/nelbo",))
    assert [(step.done, step.total, step.changed) for step in reader.read(at_once=2)] == [(2, 4, True), (4, 4, True)]
    assert [(step.done, step.total, step.changed) for step in reader.read()] == [(4, 4, False)] and len(read) == 4
    run = sweep.planned.runs[0]
    path_of(sweep, run).unlink()
    run_record.write(replace(record_of(sweep.planned, run), metrics={"val/nelbo": 9.0}), path_of(sweep, run).parent)
    assert [step.changed for step in reader.read()] == [True] and len(read) == 5
    study = reader.study(sweep.planned.design)
    assert study.values(run.arm, "val/nelbo")[0] == 9.0
    assert all(not record.config and not record.routing for record in study.cells.values())


def test_a_ledger_or_a_design_that_cant_be_read_is_said_and_what_is_known_stays(tmp_path) -> None:
    sweep = begin(tmp_path)
    sweep.finish(6)
    poller = watch(sweep)
    assert told(poller)["trouble"] == []
    (sweep.folder / DESIGN_FILE).write_text("{")
    found = told(poller)
    assert "the design can't be read" in found["trouble"][0] and found["progress"]["counts"]["finished"] == 6
    (sweep.folder / DESIGN_FILE).write_text(json.dumps(sweep.planned.design.to_json()))
    (tmp_path / "journal.log").rename(tmp_path / "moved.log")
    found = told(watch(sweep))
    assert "the ledger can't be read" in found["trouble"][0] and "--storage" in found["trouble"][0]
    assert found["progress"]["counts"] == {"finished": 6, "missing": 18} and found["verdict"]["families"]
    found = told(Poller("toy", tmp_path, f"journal:{tmp_path}/moved.log", ""))
    assert found["trouble"] == [] and found["progress"]["counts"] == {"queued": 18, "finished": 6}
    with pytest.raises(UserError, match="nothing of other has been run"):
        Poller("other", tmp_path, None, "")


@pytest.mark.slow
def test_a_search_shows_its_best_and_optunas_own_page_beside_it(tmp_path) -> None:
    pytest.importorskip("optuna_dashboard")
    planned = plan("toy", declare())
    ledger = SearchLedger(planned, tmp_path, open_storage(default_url(tmp_path)))
    (ledger.folder / DESIGN_FILE).write_text(json.dumps(planned.design.to_json()))
    Worker(ledger, trainers.landscape, lambda **event: None, StopSignal()).work()
    poller = Poller("toy", tmp_path, None, "")
    page = Page(poller.state, application(lambda: poller.storage))
    assert ask(page, "/api/studies")[0] == 404  # the ledger isn't open yet
    found = told(poller)
    assert found["trouble"] == [] and found["search"]["beside"] is True
    values = {trial: value for trial, value, state, _ in found["search"]["values"] if state == "finished"}
    (best,) = found["search"]["best"]
    assert best["value"] == min(values.values()) and best["label"] == f"trial {min(values, key=values.get)}"
    assert sum(found["progress"]["counts"].values()) == 9 and "verdict" not in found
    status, headers, content = ask(page, "/dashboard", HTTP_ACCEPT_ENCODING="")
    assert status == 200 and "/static/bundle.js" in content and headers["X-Frame-Options"] == "DENY"
    studies = json.loads(ask(page, "/api/studies")[2])["study_summaries"]
    assert [study["study_name"] for study in studies] == [f"toy#{planned.design.identity}"]
    assert ask(page, "/api/studies/0", method="DELETE")[0] == 405 and ask(page, "/api/studies", cookie=None)[0] == 403


def test_a_new_record_among_2000_is_read_alone_and_told_alone(tmp_path, monkeypatch) -> None:
    design = dashboard.leave_study(tmp_path, rows=2, bulk=False)
    poller = Poller("toy", tmp_path, None, "")
    assert json.loads(poller.state.since("")[1])["sections"].keys() == {"head"}  # what is shown before anything is read
    readings = []
    put = poller.state.put
    monkeypatch.setattr(
        poller.state,
        "put",
        lambda name, content: (
            readings.append(content["reading"]) if name == "progress" else None,
            put(name, content),
        ),
    )
    found = told(poller)
    assert [64, 1999] in readings and readings[-1] is None and len(readings) > 20
    assert found["progress"]["counts"] == {"finished": 1999, "missing": 1}
    before, whole = poller.state.since("")
    assert len(whole) < 100_000
    read, really = [], run_record.read
    monkeypatch.setattr("ablations.dashboard.curves.run_record.read", lambda path: read.append(path) or really(path))
    dashboard.leave_last(tmp_path, design)
    poller.look()
    now = poller.state.since(before)[1]
    assert len(read) == 1 and len(now) < 10_000
    assert json.loads(now)["sections"].keys() == {"progress", "verdict", "curve 19"}


def test_arms_have_the_colours_of_the_reports_figures() -> None:
    assert watching.ARM_COLOURS == ARM_COLOURS


def test_bands_are_means_over_the_runs_that_came_so_far() -> None:
    rows = (([10, 20, 30], [3, 2, 1]), ([10, 30], [5, 3]), ([10, 20], [4, 3]))
    columns = band([(np.array(tokens), np.array(values)) for tokens, values in rows])
    assert columns["tokens"] == [10, 20, 30] and columns["n"] == [3, 3, 2]
    assert columns["mean"] == pytest.approx([4, 3, 2]) and columns["sd"] == pytest.approx([1, 1, 2**0.5])
    alone = band([(np.arange(1, 1001), np.ones(1000))])
    assert len(alone["tokens"]) == POINTS and alone["tokens"][-1] == 1000 and alone["sd"] == [None] * POINTS
    assert band([]) == {"tokens": [], "mean": [], "sd": [], "n": []}
