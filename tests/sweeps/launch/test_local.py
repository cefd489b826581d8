"""Whole sweeps, with real processes that are really killed."""

import hashlib
import io
import json
import os
import re
import signal
import time
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from core.errors import UserError
from core.records import run_record
from sweeps.launch.local import run
from sweeps.launch.machine import share_of_cores
from sweeps.launch.progress import Board, Event, present
from sweeps.runs.folders import pending, recorded, run_folder
from sweeps.runs.progress import read_progress
from sweeps.storage.storage import default_url, open_storage
from tests.forked import start as fork
from tests.forked import wait_until


@pytest.fixture
def parent(make_plan, out, starts, tmp_path):
    """A sweep in a process of its own, forked."""
    plan = make_plan(seeds=range(4))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))

    def start():
        return fork("tests.sweeps.parent", str(tmp_path / "plan.json"), str(out), cwd=tmp_path, log=tmp_path / "log")

    start.plan = plan
    return start


def digests(plan, out):
    paths = [run_folder(plan, run, out) / "record.json" for run in plan.runs]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def trials_of(out, study="balance"):
    storage = open_storage(default_url(out))
    return storage.get_all_trials(storage.get_study_id_from_name(study))


def complete(out):
    return Counter(t.user_attrs["run_hash"] for t in trials_of(out) if t.state.name == "COMPLETE")


def test_a_sweep_trains_every_run_once_and_the_next_one_none(make_plan, out):
    plan, heard = make_plan(), []
    summary = run(plan, out, workers=2, on_event=heard.append)
    assert (summary.done, summary.failed, summary.reused, summary.missing) == (4, 0, 0, 0)
    for planned in plan.runs:
        record = recorded(run_folder(plan, planned, out), planned)
        assert record.status == "complete"
        written = json.loads((out / "balance" / "design.json").read_text())
        assert record.study["design"] == plan.design.to_json() == written
        assert record.provenance["threads"] == len(share_of_cores(0, 2))
    assert complete(out) == {planned.run_hash: 1 for planned in plan.runs}
    assert Counter(event.kind for event in heard) == {"message": 1, "planned": 1, "started": 4, "finished": 4}
    assert not list(out.glob("logs/job-*.json"))
    before = digests(plan, out)

    began, heard[:] = time.monotonic(), []
    again = run(plan, out, workers=2, on_event=heard.append)
    assert (again.done, again.reused) == (0, 4)
    first = f"balance: 4 runs, in {out / 'balance'}"
    assert [event.text for event in heard] == [first, "4 runs: 4 recorded already, 0 to train"]
    assert time.monotonic() - began < 3  # no process was started
    assert digests(plan, out) == before


def test_a_killed_worker_is_replaced_and_its_run_trained_again(make_plan, out, starts):
    plan, heard, killed = make_plan(seeds=range(3)), [], []

    def kill_once(event):
        heard.append(event)
        if event.kind == "started" and not killed:
            wait_until(lambda: event.run.run_hash in starts.read_text())
            [line] = [line for line in starts.read_text().splitlines() if event.run.run_hash in line]
            killed.append(event.run)
            os.kill(int(line.split()[1]), signal.SIGKILL)

    summary = run(plan, out, workers=2, on_event=kill_once, trainer="tests.sweeps.trainers:slow")
    assert (summary.done, summary.missing) == (6, 0)
    [lost] = [event for event in heard if event.kind == "lost"]
    assert lost.run == killed[0]
    assert "died (signal 9) while training" in lost.text and "queued again" in lost.text
    assert complete(out) == {planned.run_hash: 1 for planned in plan.runs}
    begun = Counter(line.split()[0] for line in starts.read_text().splitlines())
    assert begun == {planned.run_hash: 1 + (planned == killed[0]) for planned in plan.runs}


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_orphan_and_the_next_finishes_it(parent, out, starts):
    process = parent()
    wait_until(lambda: len(digests(parent.plan, out)) >= 2 and len(starts.read_text().splitlines()) >= 3)
    workers = {int(line.split()[1]) for line in starts.read_text().splitlines()}
    process.kill()
    process.wait()
    before = digests(parent.plan, out)
    assert 2 <= len(before) < 8
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 5)
    assert digests(parent.plan, out).items() >= before.items()
    before = digests(parent.plan, out)
    assert "RUNNING" in {trial.state.name for trial in trials_of(out)}

    second = parent()
    output, _ = second.communicate(timeout=300)
    summary = json.loads(output.splitlines()[-1])
    assert (summary["done"], summary["reused"]) == (8 - len(before), len(before))
    after = digests(parent.plan, out)
    assert len(after) == 8
    assert before.items() <= after.items()
    assert complete(out) == {planned.run_hash: 1 for planned in parent.plan.runs}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_sweep_says_what_is_kept_and_continues_later(parent, out, starts, number):
    process = parent()
    wait_until(lambda: len(digests(parent.plan, out)) >= 1 and len(starts.read_text().splitlines()) >= 3)
    workers = {int(line.split()[1]) for line in starts.read_text().splitlines()}
    began = time.monotonic()
    os.killpg(process.pid, number)  # as a terminal does: to the whole foreground group
    output, said = process.communicate(timeout=120)
    assert time.monotonic() - began < 8
    assert process.wait() == 130
    assert not any(psutil.pid_exists(pid) for pid in workers)
    summary = json.loads(output.splitlines()[-1])
    assert summary["interrupted"] and summary["missing"] > 0
    assert "runs recorded; `ablate run balance` trains the rest" in said
    assert "Traceback" not in said
    assert "RUNNING" not in {trial.state.name for trial in trials_of(out)}
    assert len(pending(parent.plan, out)) == summary["missing"]


def test_failures_are_recorded_kept_and_retried_when_asked(make_plan, out):
    plan, heard = make_plan(), []
    options = {"workers": 1, "trainer": "tests.sweeps.trainers:failing", "on_event": heard.append}
    summary = run(plan, out, **options)
    assert (summary.done, summary.failed, summary.missing) == (2, 2, 0)
    assert "FloatingPointError: the loss is not finite at step 7" in next(e.text for e in heard if e.kind == "failed")
    (out / "mended").touch()
    assert run(plan, out, **options).failed_before == 2
    retried = run(plan, out, **options, retry_failed=True)
    assert (retried.done, retried.reused, retried.failed_before) == (2, 2, 0)
    folder = run_folder(plan, plan.runs[-1], out)
    assert run_record.read(folder / "attempts" / "1.json").status == "failed"


def test_a_run_that_kills_its_workers_is_given_up(make_plan, out):
    plan, heard = make_plan(seeds=(1,)), []
    summary = run(plan, out, workers=1, trainer="tests.sweeps.trainers:deadly", on_event=heard.append)
    assert (summary.done, summary.failed, summary.missing) == (1, 1, 0)
    deadly, harmless = plan.runs
    assert "worker died 3 times" in recorded(run_folder(plan, deadly, out), deadly).reason
    assert recorded(run_folder(plan, harmless, out), harmless).status == "complete"
    assert Counter(event.kind for event in heard)["lost"] == 2


def test_workers_that_cant_start_end_the_sweep_with_their_last_words(make_plan, out):
    with pytest.raises(UserError, match=r"exit status 1.*No module named 'nosuch'.*worker-1.log"):
        run(make_plan(), out, workers=1, trainer="nosuch:train")


def test_no_workers_are_refused(make_plan, out):
    with pytest.raises(UserError, match="workers must be at least 1"):
        run(make_plan(), out, workers=0)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4, 6})
    assert [share_of_cores(k, 2) for k in range(2)] == [[0, 4], [2, 6]]
    assert [share_of_cores(k, 6) for k in range(6)] == [[0], [2], [4], [6], [0], [2]]
    assert share_of_cores(0, 1) == [0, 2, 4, 6]


def test_each_worker_has_a_gpu(monkeypatch):
    from sweeps.launch import machine

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [machine.share_of_gpus(k)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["3", "5", "3"]
    assert machine.default_workers() == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert machine.share_of_gpus(0) == {}


def events_of(plan, out):
    folders = [run_folder(plan, planned, out) for planned in plan.runs]
    yield Event("planned", "4 runs", to_train=3)
    yield Event("started", "started a", plan.runs[1], folders[1])
    yield Event("finished", "finished a", plan.runs[1], folders[1])
    yield Event("started", "started b", plan.runs[2], folders[2])
    yield Event("failed", "failed b: diverged", plan.runs[2], folders[2])
    yield Event("started", "started c", plan.runs[3], folders[3])


def write_progress(folder, step, loss):
    folder.mkdir(parents=True)
    row = {"step": step, "steps": 30, "loss": loss, "started": 0, "updated": 0}
    (folder / "progress.json").write_text(json.dumps(row))
    return row


def timeless(line):
    clock, text = line.split(" ", 1)
    time.strptime(clock, "%H:%M:%S")
    return text


def test_plain_lines_are_one_per_event_without_colour_with_time_loss_and_time_left(make_plan, out, monkeypatch):
    plan, stream, clock = make_plan(), io.StringIO(), SimpleNamespace(now=1e9)
    monkeypatch.setattr("sweeps.launch.progress.time", SimpleNamespace(time=lambda: clock.now, strftime=time.strftime))
    with present(plan, stream) as show:
        for event in events_of(plan, out):
            if event.text == "finished a":
                clock.now += 240
                write_progress(event.folder, 30, 3.2141)
            show(event)
    assert [timeless(line) for line in stream.getvalue().splitlines()] == [
        "4 runs",
        "started a",
        "finished a · NELBO 3.214 · 2 of 4 done, about 8 min left",
        "started b",
        "failed b: diverged · 3 of 4 done, about 4 min left",
        "started c",
    ]


def test_plain_lines_say_now_and_then_what_trains(make_plan, out, monkeypatch):
    monkeypatch.setattr("sweeps.launch.progress.LINE_S", 0.05)
    plan, stream = make_plan(), io.StringIO()
    with present(plan, stream) as show:
        folder = run_folder(plan, plan.runs[1], out)
        write_progress(folder, 12, 4.321)
        show(Event("planned", "4 runs", to_train=3))
        show(Event("started", "started a", plan.runs[1], folder))
        wait_until(lambda: stream.getvalue().count("\n") > 3)
    last = timeless(stream.getvalue().splitlines()[-1])
    assert re.fullmatch(
        re.escape(f"training {plan.runs[1].label} (12/30 NELBO 4.321) · 1 of 4 done") + ", about . s left", last
    )


def test_the_live_display_has_counts_bars_and_the_loss(make_plan, out):
    plan = make_plan()
    board = Board(plan)
    for event in events_of(plan, out):
        board.update(event)
    folder = run_folder(plan, plan.runs[3], out)
    row = write_progress(folder, 12, 4.321)
    assert read_progress(folder) == row
    console = Console(file=io.StringIO(), width=120)
    console.print(board.render())
    shown = console.file.getvalue()
    assert "balance: 3/4 runs, 1 failed, about 0 s left" in shown
    assert plan.runs[3].label in shown and "12/30" in shown and "NELBO 4.321" in shown
    assert plan.runs[2].label not in shown
    narrow = Console(file=io.StringIO(), width=50)
    narrow.print(board.render())
    lines = [line.rstrip() for line in narrow.file.getvalue().splitlines()]
    assert plan.runs[3].label in lines and max(map(len, lines)) <= 50  # its bar is below it


def test_a_terminal_gets_the_live_display(make_plan, out, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    plan, stream = make_plan(), Terminal()
    with present(plan, stream) as show:
        for event in events_of(plan, out):
            show(event)
        time.sleep(0.7)
    assert "failed b: diverged" in stream.getvalue()
    assert plan.runs[3].label in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
