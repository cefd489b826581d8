"""Workers that are really stopped, lose their lock as on a file server whose lease runs out, and wake up too late."""

import contextlib
import hashlib
import json
import os
import signal
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest

from core.records import fencing
from core.records.fencing import CLAIM_FILE
from core.training.checkpoint_files import WEIGHTS
from sweeps.runs.folders import LOCK_FILE, recorded, run_folder
from sweeps.runs.ledger import MOST_LOSSES, Ledger
from sweeps.storage.storage import default_url, open_storage
from tests.forked import start as fork
from tests.forked import wait_until
from tests.sweeps.ledgers import opened
from tests.sweeps.runs.test_fencing import contents
from tests.sweeps.tracking.test_wandb_run import read_back


@pytest.fixture
def plan(make_plan):
    """Two runs, the control's first: it is the one whose worker falls asleep."""
    return make_plan(seeds=(0,))


@pytest.fixture
def sweep(plan, starts, tmp_path, monkeypatch):
    """Sweeps of one folder of runs in processes of their own, and what to do to them."""
    out = tmp_path / "out"
    folder = run_folder(plan, plan.runs[0], out)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    for name, value in {"ASLEEP": str(tmp_path / "asleep"), "SLEEP_AT": "row", "SLOW_S": "60"}.items():
        monkeypatch.setenv(name, value)
    started = []

    def start(trainer="sleepy", **environment):
        arguments = (str(tmp_path / "plan.json"), str(out), trainer, "1")
        log = tmp_path / f"sweep-{len(started)}"
        started.append(fork("tests.sweeps.parent", *arguments, cwd=tmp_path, log=log, **environment))
        return started[-1]

    def asleep(folder=folder):
        """The worker that stopped itself, its lock lost."""
        wait_until(lambda: (tmp_path / "asleep").exists() and (tmp_path / "asleep").read_text())
        worker = psutil.Process(int((tmp_path / "asleep").read_text()))
        wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
        (folder / LOCK_FILE).unlink()
        return worker

    yield SimpleNamespace(out=out, folder=folder, start=start, asleep=asleep, started=started, here=tmp_path)
    for process in started:
        process.kill()
    for pid in (tmp_path / "asleep").read_text().split() if (tmp_path / "asleep").exists() else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            if (sleeper := psutil.Process(int(pid))).status() == psutil.STATUS_STOPPED:  # a test that failed
                sleeper.kill()


def log_of(out):
    return "".join(path.read_text() for path in out.glob("logs/worker-*.log"))


def trials_of(out, url=None):
    storage = open_storage(url or default_url(out))
    return storage.get_all_trials(storage.get_study_id_from_name("balance"))


def told(trials, run):
    return [(t.state.name, t.user_attrs.get("reason")) for t in trials if t.user_attrs["run_hash"] == run.run_hash]


def assert_whole(plan, out):
    """Every run is recorded once, with the weights that lie there."""
    for run in plan.runs:
        folder = run_folder(plan, run, out)
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        record = recorded(folder, run)
        assert (record.status, record.provenance["weights_sha256"]) == ("complete", weights)
        assert not list(folder.rglob(f"*{fencing.PARTIAL}")) and not list(folder.rglob("attempts/*"))


def end(process):
    output, _ = process.communicate()
    assert process.wait() == 0
    return json.loads(output.splitlines()[-1])


LATER = [pytest.param(at, marks=pytest.mark.slow) for at in ("progress.json", WEIGHTS, "record.json")]


@pytest.mark.parametrize("at", ["row", *LATER])
def test_a_worker_that_sleeps_through_the_loss_of_its_lock_changes_nothing(sweep, plan, at):
    first = sweep.start(SLEEP_AT=at)
    worker = sweep.asleep()
    summary = end(sweep.start())
    assert (summary["done"], summary["missing"]) == (2, 0)
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0  # its sweep goes on
    assert contents(sweep.folder) == before
    assert_whole(plan, sweep.out)
    assert recorded(sweep.folder, plan.runs[0]).provenance["pid"] != worker.pid
    [said] = [line for line in log_of(sweep.out).splitlines() if "is given up here" in line]
    assert f"{plan.runs[0].label} is given up here" in said and "took this run over while this process slept" in said
    assert "Traceback" not in log_of(sweep.out)
    assert "was taken over by another process while its worker slept" in (sweep.here / "sweep-0").read_text()
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["row", WEIGHTS, "record.json"])
def test_one_that_wakes_while_the_other_still_trains_gives_way_too(sweep, plan, at):
    first = sweep.start(SLEEP_AT=at)
    worker, gate = sweep.asleep(), sweep.here / "gate"
    second = sweep.start(GATE=str(gate))
    wait_until(lambda: json.loads((sweep.folder / CLAIM_FILE).read_text())["number"] == 3)  # lost, then claimed
    wait_until((sweep.folder / "progress.json").exists)
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: "is given up here" in log_of(sweep.out))
    assert not (sweep.folder / "record.json").exists() and not (sweep.folder / WEIGHTS).exists()
    gate.touch()
    assert end(second)["missing"] == end(first)["missing"] == 0
    assert_whole(plan, sweep.out)
    assert recorded(sweep.folder, plan.runs[0]).provenance["pid"] != worker.pid
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
def test_a_record_that_was_written_before_the_sleep_stays_though_another_tells_of_it(sweep, plan):
    first = sweep.start(SLEEP_AT="told")
    worker, before = sweep.asleep(), (sweep.folder / "record.json").read_bytes()
    end(sweep.start())
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0
    assert (sweep.folder / "record.json").read_bytes() == before
    assert_whole(plan, sweep.out)
    assert told(trials_of(sweep.out), plan.runs[0]) == [("COMPLETE", None)]
    assert "another process has told of it already" in log_of(sweep.out)


@pytest.mark.slow
def test_of_two_sweeps_on_two_storages_each_tells_its_trial_of_the_one_record(sweep, plan):
    other = f"sqlite:///{sweep.here}/runs.db"
    first = sweep.start(SLEEP_AT=WEIGHTS)
    worker = sweep.asleep()
    end(sweep.start(ABLATE_STORAGE=other))
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGCONT)
    end(first)
    assert contents(sweep.folder) == before
    assert_whole(plan, sweep.out)
    for url in (None, other):
        assert told(trials_of(sweep.out, url), plan.runs[0]) == [("COMPLETE", None)]


@pytest.mark.slow
def test_one_that_is_stopped_for_good_as_it_wakes_leaves_the_run_to_the_other(sweep, plan):
    first = sweep.start()
    worker = sweep.asleep()
    end(sweep.start())
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGCONT)
    first.wait()
    assert contents(sweep.folder) == before and "Traceback" not in log_of(sweep.out)
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
def test_a_real_training_that_sleeps_at_a_checkpoint_damages_neither_checkpoints_nor_weights(sweep, make_plan):
    settings = ["trainer.checkpoint_every=10", "trainer.keep_best=val/nelbo"]
    plan = make_plan(seeds=(0,), overrides=settings)
    (sweep.here / "plan.json").write_text(json.dumps(plan.to_json()))
    folder = run_folder(plan, plan.runs[0], sweep.out)
    first = sweep.start("sleepy_training", SLEEP_AT="latest.json")
    worker = sweep.asleep(folder)
    assert end(sweep.start("sleepy_training"))["missing"] == 0
    before = contents(folder)
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0
    assert contents(folder) == before and not (folder / "checkpoints").exists()
    assert_whole(plan, sweep.out)
    best = hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest()
    assert recorded(folder, plan.runs[0]).best["weights_sha256"] == best
    assert "is given up here" in log_of(sweep.out) and "Traceback" not in log_of(sweep.out)


@pytest.mark.slow
def test_the_wandb_run_of_whoever_gives_way_gets_no_end_and_the_next_run_is_mirrored(sweep, plan):
    first = sweep.start(WANDB_MODE="offline")
    worker = sweep.asleep()
    [mirrored] = sweep.folder.glob("wandb/offline-run-*/run-*.wandb")
    claim, _ = opened(plan, sweep.out).claim()
    assert claim.folder == sweep.folder
    worker.send_signal(signal.SIGCONT)
    summary = end(first)
    assert (summary["missing"], summary["elsewhere"]) == (0, 1)  # another process holds it
    assert read_back(mirrored).exit_code is None
    assert "W&B was not to be stopped" not in log_of(sweep.out)
    [other] = run_folder(plan, plan.runs[1], sweep.out).glob("wandb/offline-run-*/run-*.wandb")
    assert read_back(other).exit_code == 0
    [trial] = [t for t in trials_of(sweep.out) if t.state.name == "COMPLETE"]
    assert trial.user_attrs["wandb"]["status"] == "offline"


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_in_each_of_ten_sweeps_is_given_up(sweep, plan):
    starts, heard = sweep.here / "starts", ""
    for _ in range(10):
        begun, process = len(starts.read_text().splitlines()), sweep.start("slow")
        wait_until(lambda: len(starts.read_text().splitlines()) > begun or process.poll() is not None)  # noqa: B023
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # it neither notices nor asks its worker to end
            os.kill(int(starts.read_text().split()[-1]), signal.SIGKILL)
            process.kill()
        process.wait()
        heard += (sweep.here / f"sweep-{len(sweep.started) - 1}").read_text()
    assert Counter(line.split()[0] for line in starts.read_text().splitlines()) == {
        run.run_hash: MOST_LOSSES + 1 for run in plan.runs
    }
    for run in plan.runs:
        record = recorded(run_folder(plan, run, sweep.out), run)
        assert (record.status, record.reason) == ("failed", "lost: worker died 3 times (out of memory?)")
        assert f"while training {run.label}: given up after 3 losses" in heard
    retried = Ledger(plan, sweep.out, open_storage(default_url(sweep.out)))
    retried.reconcile(retry_failed=True)
    claim, _ = retried.claim()
    claim.lock.release()
    assert [lost.gave_up for lost in retried.reconcile()] == [False]  # counted anew
