import json
import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from core.records import run_record
from sweeps.launch.worker import StopRequestedError, StopSignal, Worker
from sweeps.runs.folders import pending, recorded, run_folder
from sweeps.runs.ledger import Ledger
from sweeps.runs.progress import ProgressLogger, read_progress
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps import trainers


@pytest.fixture
def workshop(make_plan, tmp_path):
    """A plan, its ledger, the events heard, a way to work through it with some trainer, and the records."""
    plan, out = make_plan(), tmp_path / "out"
    ledger = Ledger(plan, out, open_storage(default_url(out)))
    ledger.reconcile()
    heard = []

    def work(train):
        Worker(ledger, train, lambda **event: heard.append(event), StopSignal()).work()

    def records():
        return [recorded(run_folder(plan, run, out), run) for run in plan.runs]

    return SimpleNamespace(plan=plan, out=out, ledger=ledger, heard=heard, work=work, records=records)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    times = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr("sweeps.runs.progress.time", times)
    return clock


def test_a_worker_trains_all_that_waits_and_says_so(workshop):
    workshop.work(trainers.quick)
    assert [record.status for record in workshop.records()] == ["complete"] * 4
    assert [event["event"] for event in workshop.heard] == ["started", "finished"] * 4
    assert [event["run_hash"] for event in workshop.heard[::2]] == [run.run_hash for run in workshop.plan.runs]
    study = {"ablation": "balance", "size": "full", "design": workshop.plan.design.to_json()}
    assert [record.study for record in workshop.records()] == [study | {"arm": run.arm} for run in workshop.plan.runs]


def test_a_run_that_raises_is_a_failed_record_and_the_next_run_goes_on(workshop):
    workshop.work(trainers.failing)
    statuses = [record.status for record in workshop.records()]
    assert statuses == ["complete", "complete", "failed", "failed"]
    failed = workshop.records()[-1]
    assert failed.reason == "FloatingPointError: the loss is not finite at step 7"
    assert failed.config["seed"] == 1 and failed.metrics == {}
    trial = workshop.ledger._study.get_trials()[-1]
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", failed.reason)
    assert pending(workshop.plan, workshop.out) == ()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_leaves_no_record_of_the_run_it_trained(workshop, number):
    def train(config, folder, **rest):
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(StopRequestedError):
        workshop.work(train)
    assert time.monotonic() - began < 5
    assert pending(workshop.plan, workshop.out) == workshop.plan.runs
    trial = workshop.ledger._study.get_trials()[0]
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", "interrupted")
    workshop.ledger.reconcile()
    workshop.work(trainers.quick)
    assert pending(workshop.plan, workshop.out) == ()


def test_a_stop_that_comes_between_runs_is_heeded_before_the_next(workshop, monkeypatch):
    finish = workshop.ledger.finish

    def finish_late(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return finish(*arguments)

    monkeypatch.setattr(workshop.ledger, "finish", finish_late)
    with pytest.raises(StopRequestedError):
        workshop.work(trainers.quick)
    assert [trial.state.name for trial in workshop.ledger._study.get_trials()] == ["COMPLETE"] + ["WAITING"] * 3


def test_training_on_other_data_than_planned_fails_and_keeps_both_records(workshop):
    def train(config, folder, **rest):
        record = trainers.quick(config, folder, **rest)
        moved = run_record.RunRecord(**(vars(record) | {"data_fingerprint": "markov:other"}))
        trainers.overwrite(moved, folder)
        return moved

    workshop.work(train)
    record = workshop.records()[0]
    assert record.status == "failed"
    assert "data changed" in record.reason and "markov:other" in record.reason
    folder = run_folder(workshop.plan, workshop.plan.runs[0], workshop.out)
    assert run_record.read(folder / "attempts" / "1.json").status == "complete"


def test_progress_is_written_at_most_once_a_second_and_read_back(tmp_path, clock):
    logger = ProgressLogger(tmp_path, steps=50)
    assert read_progress(tmp_path) is None
    seen = []
    for step in range(1, 31):
        clock.now += 0.1
        logger.log_metrics({"train/nelbo": 5.0 - step / 10, "train/loss": 9.0}, step)
        content = json.loads((tmp_path / "progress.json").read_text())
        seen += [content["step"]] if content["step"] not in seen else []
    assert seen == [1, 11, 21]
    assert content == {
        "step": 21,
        "steps": 50,
        "loss": pytest.approx(2.9),
        "started": 1000.0,
        "updated": pytest.approx(1002.1),
        "tokens_per_step": None,
        "curves": {},
    }
    clock.now += 2
    logger.log_metrics({"val/nelbo": 1.0}, 31)
    assert read_progress(tmp_path)["loss"] == pytest.approx(2.0)


def test_the_log_says_each_half_minute_how_far_a_run_is(tmp_path, clock, caplog):
    logger = ProgressLogger(tmp_path, steps=500)
    with caplog.at_level(logging.INFO, logger="sweeps.runs.progress"):
        for step in range(101, 171):  # from a checkpoint
            clock.now += 1
            logger.log_metrics({"train/nelbo": 5.0 - step / 100, "train/loss": 9.0}, step)
        logger.log_metrics({"val/nelbo": 1.0})
    assert caplog.messages == [
        "step 130 of 500, NELBO 3.700, about 6 min left",
        "step 160 of 500, NELBO 3.400, about 6 min left",
    ]


def test_the_curves_of_a_run_in_training_are_kept_thin_and_go_on_where_the_run_does(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.runs.progress.INTERVAL_S", 0.0)
    keep = ("train/nelbo", "val/nelbo")
    logger = ProgressLogger(tmp_path, 2000, tokens_per_step=64, keep=keep)
    for step in range(1, 1001):
        logger.log_metrics({"train/nelbo": float(step), "train/loss": 0.0}, step)
    logger.log_metrics({"val/nelbo": 7.0}, 1000)
    told = read_progress(tmp_path)
    curve = told["curves"]["train/nelbo"]
    assert curve["step"] == curve["value"] and curve["step"][-1] == 1000 and 64 <= len(curve["step"]) <= 128
    assert told["curves"]["val/nelbo"] == {"step": [1000], "value": [7.0]} and told["tokens_per_step"] == 64
    again = ProgressLogger(tmp_path, 2000, tokens_per_step=64, keep=keep)  # from a checkpoint after step 900
    again.log_metrics({"train/nelbo": float("nan")}, 901)
    again.log_metrics({"train/nelbo": -1.0}, 902)
    gone_on = read_progress(tmp_path)["curves"]["train/nelbo"]
    assert gone_on["step"][-1] == 902 and gone_on["value"][-1] == -1.0 and gone_on["step"][-2] <= 900
    assert gone_on["step"][0] == curve["step"][0]


def test_a_wandb_that_breaks_fails_no_run_and_is_told_to_the_trial(workshop, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def broken(**settings):
        raise OSError("no space left on device")

    monkeypatch.setattr("wandb.init", broken)
    with caplog.at_level(logging.WARNING):
        workshop.work(trainers.quick)
    assert [record.status for record in workshop.records()] == ["complete"] * 4
    for trial in workshop.ledger._study.get_trials():
        assert trial.user_attrs["wandb"]["status"].startswith("failed: could not start: OSError: no space left")
    assert len([entry for entry in caplog.records if "W&B" in entry.message]) == 4  # once a run
