"""Sweeps whose storage goes away or whose disk fills up: every run is trained once, recorded once, and worth the same."""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter

import pytest
import torch
from optuna.trial import TrialState

from core.errors import UserError
from core.records import pending_record, run_record
from core.runtime.retry import OutOfPatienceError, Patience
from core.training.run import train
from sweeps.launch.local import run
from sweeps.runs.folders import recorded, run_folder
from sweeps.runs.ledger import Ledger
from sweeps.storage.storage import default_url, open_storage
from tests.forked import wait_until
from tests.sweeps.ledgers import opened, states, train_all, train_claimed
from tests.sweeps.postgres import PASSWORD, free_port, served
from tests.sweeps.trainers import quick

pytestmark = pytest.mark.slow


def when_finished(count, disaster):
    """An on_event that strikes once so many runs have finished, and keeps what it hears in `.heard`."""

    def on_event(event):
        on_event.heard.append(event)
        if event.kind == "finished" and Counter(e.kind for e in on_event.heard)["finished"] == count:
            disaster()

    on_event.heard = []
    return on_event


def assert_whole(plan, out, url, starts=None, again=0):
    """One record and one completed trial a run, with the values of an undisturbed sweep; started once each."""
    found = [recorded(run_folder(plan, planned, out), planned) for planned in plan.runs]
    expected = [2.0 + p.seed + p.config.objective.load_balancing_weight for p in plan.runs]
    assert [record.metrics["val/nelbo"] for record in found] == expected
    assert len(list(out.rglob("record.json"))) == len(plan.runs)
    trials = Ledger(plan, out, open_storage(url))._study.get_trials()
    told = {t.user_attrs["run_hash"]: t.value for t in trials if t.state == TrialState.COMPLETE}
    assert told == {p.run_hash: value for p, value in zip(plan.runs, expected, strict=True)}
    assert Counter(t.state.name for t in trials)["COMPLETE"] == len(plan.runs)
    assert not {t.state for t in trials} & {TrialState.RUNNING, TrialState.WAITING}
    if starts is not None:
        begun = Counter(line.split()[0] for line in starts.read_text().splitlines())
        assert set(begun) == {p.run_hash for p in plan.runs}
        assert sum(begun.values()) == len(plan.runs) + again


def assert_secret_kept(out, heard):
    assert not [event for event in heard if PASSWORD in event.text]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert any("worker" in path.name for path in files)
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def log_of(out):
    return "".join(path.read_text() for path in out.glob("logs/worker-*.log"))


def test_a_server_that_is_stopped_for_a_while_costs_no_run(make_plan, out, starts, postgres, database, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    plan = make_plan(seeds=range(5))

    def outage():
        postgres.stop()
        time.sleep(8)
        postgres.start()

    on_event = when_finished(3, outage)
    summary = run(plan, out, storage_url=database, workers=2, on_event=on_event, trainer="tests.sweeps.trainers:slow")
    assert (summary.done, summary.missing, summary.failed) == (10, 0, 0)
    assert_whole(plan, out, database, starts)
    assert f"storage postgresql://ablate:***@127.0.0.1:{postgres.port}/" in log_of(out)
    assert "it works again after" in log_of(out)
    assert list(out.rglob("*.wandb"))
    assert_secret_kept(out, on_event.heard)


def test_a_server_that_crashes_and_a_worker_that_is_killed(make_plan, out, starts, postgres, database):
    plan, killed = make_plan(seeds=range(5)), []

    def crash():
        postgres.stop("immediate")
        postgres.start()

    def on_event(event):
        disaster(event)
        if event.kind == "started" and len(disaster.heard) > 10 and not killed:
            wait_until(lambda: event.run.run_hash in starts.read_text())
            [line] = [line for line in starts.read_text().splitlines() if event.run.run_hash in line]
            killed.append(event.run)
            os.kill(int(line.split()[1]), signal.SIGKILL)

    disaster = when_finished(2, crash)
    summary = run(plan, out, storage_url=database, workers=2, on_event=on_event, trainer="tests.sweeps.trainers:slow")
    assert killed
    assert (summary.done, summary.missing, summary.failed) == (10, 0, 0)
    assert_whole(plan, out, database, starts, again=1)
    assert [event.run for event in disaster.heard if event.kind == "lost"] == killed
    assert_secret_kept(out, disaster.heard)


def test_a_proxy_that_is_restarted_and_whose_database_is(make_plan, out, database, postgres):
    plan, port = make_plan(seeds=(0, 1)), free_port()
    with served(database, port) as url:
        ledger = opened(plan, out, url, Patience(limit_s=60, most_s=1.0))
        claim, _ = ledger.claim()
    record = quick(claim.run.config, claim.folder)
    with served(database, port):
        ledger.finish(claim, record, {})
        claim, _ = ledger.claim()
        postgres.stop("immediate")
        postgres.start()
        train_claimed(ledger, claim)
        train_all(ledger)
    assert_whole(plan, out, database)


def test_wrong_passwords_and_absent_databases_are_refused_in_one_line(postgres, database):
    for url in (database.replace(PASSWORD, "wrong" + PASSWORD), postgres.url("nosuch")):
        for patience in (None, Patience()):  # a mistake isn't waited out
            with pytest.raises(UserError) as refusal:
                open_storage(url, patience)
            assert PASSWORD not in str(refusal.value) and "\n" not in str(refusal.value)
            assert "authentication failed" in str(refusal.value) or "does not exist" in str(refusal.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; a function that fills it, and one that makes room."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    ballast = place / "ballast"

    def fill():
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        yield place, fill, ballast.unlink
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_for_a_while_costs_no_run(make_plan, small_disk, tmp_path):
    """Really trained: weights, progress, logs, the journal and the records all lie on the disk."""
    place, fill, make_room = small_disk
    plan, out = make_plan(seeds=range(4), overrides=["trainer.checkpoint_every=10"]), place / "out"

    def disaster():
        fill()
        time.sleep(6)
        make_room()

    on_event = when_finished(2, disaster)
    summary = run(plan, out, workers=2, on_event=on_event)
    assert (summary.done, summary.missing, summary.failed) == (8, 0, 0)
    assert not [event for event in on_event.heard if event.kind in ("lost", "failed")]
    assert states(Ledger(plan, out, open_storage(default_url(out)))) == {"COMPLETE": 8}
    assert not list((tmp_path / "spill").glob("*"))
    assert "it works again after" in log_of(out)
    torch.set_num_threads(1)
    for planned in plan.runs:
        folder = run_folder(plan, planned, out)
        undisturbed = train(planned.config, tmp_path / "undisturbed" / planned.run_hash)
        record = recorded(folder, planned)
        assert record.validation == undisturbed.validation
        assert record.provenance["weights_sha256"] == undisturbed.provenance["weights_sha256"]
        assert not (folder / "checkpoints").exists()


def test_a_record_that_found_no_room_is_brought_home_later(make_plan, small_disk, monkeypatch):
    place, fill, make_room = small_disk
    plan, out = make_plan(seeds=(0,)), place / "out"
    ledger = opened(plan, out, f"journal:{place.parent}/journal.log")
    claim, _ = ledger.claim()
    fill()
    monkeypatch.setenv("ABLATE_PATIENCE_S", "0")
    with pytest.raises(OutOfPatienceError, match="the finished record is in .*spill"):
        quick(claim.run.config, claim.folder)
    claim.lock.release()  # as the worker's end does
    assert ledger.reconcile() == []  # still full: neither lost nor queued again
    assert ledger.waiting() == 1
    make_room()
    assert ledger.reconcile() == []
    assert recorded(claim.folder, claim.run).metrics == {"val/nelbo": 2.0 + 0.01}
    assert pending_record.find(claim.folder) is None
    assert states(ledger) == {"COMPLETE": 1, "WAITING": 1}
    assert run_record.digest((claim.folder / "record.json").read_bytes()) in {
        t.user_attrs.get("record_sha256") for t in ledger._study.get_trials()
    }
