import json
import os
import signal
import struct
import subprocess
import time
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from core.records.decoded import Decoded
from core.records.run_record import RunRecord
from core.training.run import train
from sweeps.tracking.wandb_run import WandbTracker, run_id, tell_answers

wandb = pytest.importorskip("wandb")

LOAD = {"step": [15, 30], "load": [[[0.25, 0.75], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]}
ROUTING = {"step": [15, 30], "load_by_timestep": [[[[0.2, 0.8], [0.6, 0.4]]] * 10] * 2}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


@pytest.fixture
def track(make_plan, tmp_path):
    plan = make_plan(size="full")

    def make(attempt=0):
        return WandbTracker(plan, plan.runs[0], tmp_path / "run", run_id(plan.runs[0], "folder", attempt))

    make.plan, make.run, make.folder = plan, plan.runs[0], tmp_path / "run"
    return make


def finished(run, **changes):
    fields = {
        "status": "complete",
        "run_hash": run.run_hash,
        "arm_hash": run.arm_hash,
        "seed": run.seed,
        "config": {},
        "metrics": {"val/nelbo": 2.5},
        "expert_load": LOAD,
        "data_fingerprint": run.fingerprint,
    }
    return RunRecord(**(fields | changes))


def read_back(path):
    """What a .wandb file says: run, config, history rows, summary, exit code."""
    from wandb.proto import wandb_internal_pb2 as messages

    content, place, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    told = SimpleNamespace(run=None, config={}, rows=[], summary={}, exit_code=None, folder=path.parent)
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        checksum, size, kind = struct.unpack("<IHB", content[place : place + 7])
        if (size, kind) == (0, 0):
            place += room
            continue
        part = content[place + 7 : place + 7 + size]
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        place, parts = place + 7 + size, parts + part
        if kind in (1, 4):  # a whole record, or its last part
            record = messages.Record()
            record.ParseFromString(parts)
            parts = b""
            take(told, record)
    return told


def take(told, record):
    kind = record.WhichOneof("record_type")
    if kind == "run":
        told.run = record.run
        told.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "history":
        told.rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    elif kind == "summary":
        told.summary |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
    elif kind == "exit":
        told.exit_code = record.exit.exit_code


def only_run(folder):
    wandb.teardown()  # on a busy machine the service may still be writing the file after finish
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    return read_back(path)


@pytest.mark.slow
def test_a_real_run_is_mirrored_whole(offline, track):
    tracker = track()
    record = train(track.run.config, track.folder, loggers=[tracker], study=track.plan.study_field(track.run))
    tracker.finish(record)
    assert tracker.status == {"status": "offline", "id": run_id(track.run, "folder", 0)}
    told = only_run(track.folder)
    assert (told.run.project, told.run.run_group, told.run.job_type) == (
        "moe-diffusion-ablations",
        "balance",
        track.run.arm,
    )
    assert told.run.run_id == tracker.status["id"]
    assert {"balance", "full", "seed 0", "control"} <= set(told.run.tags)
    assert told.config["trainer"]["steps"] == 30
    assert told.config["seed"] == 0
    assert told.config["factors"] == {"objective.load_balancing_weight": 0.01}
    curve = {row["_step"]: row["train/nelbo"] for row in told.rows if "train/nelbo" in row}
    assert curve == pytest.approx(dict(zip(record.curve["step"], record.curve["train/nelbo"], strict=True)))
    validated = {row["_step"]: row["val/nelbo"] for row in told.rows if "val/nelbo" in row}
    assert validated == pytest.approx(dict(zip(record.validation["step"], record.validation["val/nelbo"], strict=True)))
    assert told.summary["val/nelbo"] == pytest.approx(record.metrics["val/nelbo"])
    assert told.summary["status"] == "complete"
    assert told.exit_code == 0


def test_what_a_model_answered_joins_the_run_that_mirrors_it(offline, track):
    answers = [
        Decoded("one", {}, "dyck", 4, "w", ["1101", "1001"], calls=16.0, length=16, seconds=2.0),
        Decoded("two", {}, "dyck", 4, "w", reason="OSError: no room"),
    ]
    tell_answers(track.plan, track.run, track.folder, answers)
    assert not track.folder.exists()  # it isn't mirrored
    tracker = track()
    record = finished(track.run, before={"flops": 2.0, "tokens": 30.0}, flops=5.0, validation={"tokens": [64.0]})
    tracker.finish(record)
    told = only_run(track.folder)
    assert told.summary["flops"] == 5.0 and told.summary["tokens"] == 94.0  # the first stage's among them
    time.sleep(1.1)  # folders are named by the second
    tell_answers(track.plan, track.run, track.folder, answers)
    wandb.teardown()
    segments = sorted(track.folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(segments) == 2 and len({path.name for path in segments}) == 1
    told = read_back(segments[1])
    assert told.run.run_id == tracker.status["id"] and told.exit_code == 0
    assert told.summary["decoded/one/exact_match"] == 5 / 8 and told.summary["decoded/one/calls"] == 16
    assert told.summary["decoded/two/reason"] == "OSError: no room"


def test_expert_load_is_a_picture_and_a_table(offline, track):
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 30)
    tracker.finish(finished(track.run))
    told = only_run(track.folder)
    [row] = [row for row in told.rows if "expert_load/heatmap/path" in row]
    assert row["_step"] == 30 and row["train/nelbo"] == 3.0  # the last step's row, not one more
    picture = Image.open(told.folder / "files" / row["expert_load/heatmap/path"])
    assert picture.size == (32, 32)  # two experts by two layers
    assert picture.getpixel((20, 20)) == (253, 231, 37)  # the largest share is viridis's brightest
    content = json.loads((told.folder / "files" / row["expert_load/table/path"]).read_text())
    assert content["columns"] == ["step", "layer", "expert", "load"]
    assert len(content["data"]) == 8
    assert content["data"][-1] == [30, 1, 1, 0.9]


def test_load_by_timestep_is_a_picture_and_alarms_are_in_the_summary(offline, track):
    tracker = track()
    alarms = [{"step": 15, "kind": "collapse", "detail": "layer 0"}]
    tracker.finish(finished(track.run, routing=ROUTING, alarms=alarms))
    told = only_run(track.folder)
    [path] = [row["routing/load_by_timestep/path"] for row in told.rows if "routing/load_by_timestep/path" in row]
    picture = Image.open(told.folder / "files" / path)
    assert picture.size == (21 * 16, 5 * 16)  # ten bins twice and a gap; two experts, a gap, two experts
    assert picture.getpixel((8, 24))[:3] == (253, 231, 37) and picture.getpixel((165, 8)) == (255, 255, 255)
    assert told.summary["alarms"] == ["collapse"]


def test_a_failed_run_shows_as_failed_with_its_reason(offline, track):
    tracker = track()
    tracker.finish(finished(track.run, status="failed", reason="diverged", metrics={}, expert_load={}))
    told = only_run(track.folder)
    assert told.exit_code == 1
    assert (told.summary["status"], told.summary["reason"]) == ("failed", "diverged")


def test_project_and_mode_come_from_the_environment(offline, track, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    tracker = track()
    tracker.finish(finished(track.run))
    assert only_run(track.folder).run.project == "elsewhere"


def test_an_outer_agents_run_is_not_inherited_and_the_sites_settings_are(offline, track, monkeypatch):
    outer = {
        "RUN_ID": "alien",
        "SWEEP_ID": "aliensweep",
        "RESUME": "must",
        "RUN_GROUP": "aliengroup",
        "NAME": "alienname",
    }
    outer |= {"JOB_TYPE": "alienjob", "TAGS": "alientag", "NOTES": "aliennote", "SERVICE": "3-1-tcp-localhost-9"}
    for name, value in (outer | {"PROJECT": "elsewhere", "ENTITY": "us"}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = track()
    tracker.finish(finished(track.run))
    assert tracker.status == {"status": "offline", "id": tracker.status["id"]}
    told = only_run(track.folder).run
    assert (told.run_id, told.project, told.entity) == (tracker.status["id"], "elsewhere", "us")
    assert "alien" not in str(told)


def test_without_a_login_runs_are_offline(track, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    tracker = track()
    tracker.finish(finished(track.run))
    assert tracker.status["status"] == "offline"
    wandb.teardown()


def test_with_a_login_runs_are_online_and_a_dead_server_costs_bounded_time(track, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "5ecre7" + "0" * 34)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("sweeps.tracking.wandb_run.INIT_TIMEOUT_S", 1.0)
    began = time.monotonic()
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 1)
    tracker.finish(finished(track.run))
    assert time.monotonic() - began < 20
    assert tracker.status["status"].startswith("failed: could not start")
    assert "5ecre7" not in caplog.text + json.dumps(tracker.status)


def test_disabled_means_untouched(track, tmp_path):
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 1)
    tracker.finish(finished(track.run))
    assert tracker.status["status"] == "disabled"
    assert not (tmp_path / "run").exists()


def test_a_missing_wandb_is_said_once(offline, track, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 1)
    tracker.finish(finished(track.run))
    assert tracker.status["status"].startswith("failed: could not start: ModuleNotFoundError")
    assert sum("W&B" in entry.message for entry in caplog.records) == 1
    monkeypatch.undo()


def test_a_place_that_cant_be_written_fails_nothing(offline, track, caplog):
    track.folder.parent.mkdir(exist_ok=True)
    track.folder.write_text("a file where the run's folder should be")
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 1)
    tracker.finish(finished(track.run))
    assert tracker.status["status"].startswith("failed: could not start")


def test_a_killed_service_ends_this_mirror_and_not_the_next(offline, track, caplog):
    tracker = track()
    tracker.log_metrics({"train/nelbo": 3.0}, 1)
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True)
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.3)
    tracker.log_metrics({"train/nelbo": 2.9}, 2)
    tracker.log_metrics({"train/nelbo": 2.8}, 3)
    tracker.finish(finished(track.run))
    assert tracker.status["status"].startswith("failed: could not")
    assert sum("W&B" in entry.message for entry in caplog.records) == 1
    second = track(attempt=1)
    second.finish(finished(track.run))
    assert second.status["status"] == "offline"


def test_a_stuck_wandb_is_not_waited_for(offline, track, monkeypatch):
    monkeypatch.setattr("sweeps.tracking.wandb_run.INIT_TIMEOUT_S", -4.5)
    monkeypatch.setattr("wandb.init", lambda **settings: time.sleep(20))
    began = time.monotonic()
    assert "no answer within 0.5 s" in track().status["status"]
    assert time.monotonic() - began < 8


def test_ids_are_the_same_for_the_same_attempt_alone(track, make_plan):
    other = make_plan().runs[1]
    ids = [run_id(track.run, "folder", 0), run_id(track.run, "folder", 1), run_id(track.run, "elsewhere", 0)]
    ids.append(run_id(other, "folder", 0))
    assert len(set(ids)) == 4
    assert run_id(track.run, "folder", 0) == ids[0]
