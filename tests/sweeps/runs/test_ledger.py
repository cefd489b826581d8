import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from core.errors import UserError
from core.records import run_record
from sweeps.runs.folders import RunLock, clean, pending, recorded, run_folder
from sweeps.runs.ledger import MOST_LOSSES
from sweeps.studies.factors import Factor
from tests.sweeps.ledgers import opened, states, train_all, train_claimed
from tests.sweeps.trainers import quick, record_of


@pytest.fixture
def open_ledger(tmp_path):
    def make(plan, out=tmp_path / "out", url=None):
        return opened(plan, out, url)

    return make


@pytest.fixture
def ledger(make_plan, open_ledger):
    """Of two runs, both queued."""
    return open_ledger(make_plan(seeds=(0,)))


def die_while_training(ledger):
    """Claim a run in a process that is then killed; the run's label."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        claim, _ = ledger.claim()
        (claim.folder / "partial.bin").write_bytes(b"half")
        os.write(writer, claim.run.label.encode())
        signal.pause()
    label = os.read(reader, 1000).decode()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return label


def test_runs_are_claimed_in_the_plans_order_and_told_with_their_metric(make_plan, open_ledger):
    plan = make_plan()
    ledger = open_ledger(plan)
    assert ledger.waiting() == 4
    assert train_all(ledger) == list(plan.runs)
    trials = ledger._study.get_trials()
    assert [trial.value for trial in trials] == [2.01, 2.0, 3.01, 3.0]
    assert trials[0].params == {"objective.load_balancing_weight": 0.01}
    for trial, run in zip(trials, plan.runs, strict=True):
        assert (trial.user_attrs["arm"], trial.user_attrs["seed"]) == (run.arm, run.seed)
        assert (ledger.out / trial.user_attrs["record"]).exists()
    assert pending(plan, ledger.out) == ()


def test_reconciling_again_changes_nothing(make_plan, open_ledger):
    ledger = open_ledger(make_plan())
    for _ in range(3):
        ledger.reconcile()
    assert states(ledger) == {"WAITING": 4}
    train_all(ledger)
    journal = (ledger.out / "journal.log").read_bytes()
    assert ledger.reconcile() == []
    assert (ledger.out / "journal.log").read_bytes() == journal


def test_a_claim_excludes_others_until_it_is_told(make_plan, open_ledger):
    plan = make_plan(seeds=(0,))
    first, second = open_ledger(plan), open_ledger(plan)
    claim, _ = first.claim()
    assert second.reconcile() == []
    assert second.claim()[0].run != claim.run
    assert second.claim() == (None, False)
    first.finish(claim, quick(claim.run.config, claim.folder), {"wandb": {"status": "disabled"}})
    assert states(first) == {"COMPLETE": 1, "RUNNING": 1}
    assert first._study.get_trials()[0].user_attrs["wandb"] == {"status": "disabled"}


def test_a_dead_workers_run_is_lost_cleaned_and_queued_again(ledger):
    label = die_while_training(ledger)
    [lost] = ledger.reconcile()
    assert (lost.run.label, lost.gave_up) == (label, False)
    assert states(ledger) == {"FAIL": 1, "WAITING": 2}
    failed = next(trial for trial in ledger._study.get_trials() if trial.state == TrialState.FAIL)
    assert failed.user_attrs["reason"] == "lost: worker died"
    claim, _ = ledger.claim()
    assert (claim.run.label, claim.attempt) == (label, 1)
    assert not (claim.folder / "partial.bin").exists()


def test_a_run_that_kills_its_workers_becomes_a_failed_record(ledger):
    label = die_while_training(ledger)
    for _ in range(MOST_LOSSES):
        assert [lost.gave_up for lost in ledger.reconcile()] == [False]
        assert die_while_training(ledger) == label
    assert [lost.gave_up for lost in ledger.reconcile()] == [True]
    [run] = [run for run in ledger.plan.runs if run.label == label]
    record = recorded(run_folder(ledger.plan, run, ledger.out), run)
    assert (record.status, record.run_hash) == ("failed", run.run_hash)
    assert "lost: worker died 3 times" in record.reason
    assert record.study["arm"] == run.arm
    assert run not in pending(ledger.plan, ledger.out)
    assert states(ledger) == {"FAIL": 3, "WAITING": 1}


def test_a_kill_between_record_and_tell_is_repaired(ledger):
    claim, _ = ledger.claim()
    quick(claim.run.config, claim.folder)
    content = (claim.folder / "record.json").read_bytes()
    claim.lock.release()  # as the worker's death does
    assert ledger.reconcile() == []
    assert states(ledger) == {"COMPLETE": 1, "WAITING": 1}
    assert (claim.folder / "record.json").read_bytes() == content


def test_an_abandoned_run_is_trained_next_time(ledger):
    claim, _ = ledger.claim()
    ledger.abandon(claim, "interrupted")
    assert claim.run in pending(ledger.plan, ledger.out)
    assert [trial.user_attrs.get("reason") for trial in ledger._study.get_trials()] == ["interrupted", None]
    ledger.reconcile()
    assert states(ledger) == {"FAIL": 1, "WAITING": 2}
    assert train_all(ledger) == list(ledger.plan.runs)


def test_a_run_abandoned_after_its_record_was_written_counts_as_complete(ledger):
    claim, _ = ledger.claim()
    quick(claim.run.config, claim.folder)
    ledger.abandon(claim, "interrupted")
    assert states(ledger) == {"COMPLETE": 1, "WAITING": 1}


def test_failures_are_kept_until_a_retry_is_asked_for(ledger):
    claim, _ = ledger.claim()
    record = replace(record_of(claim.run.config), status="failed", reason="the loss is not finite", metrics={})
    run_record.write(record, claim.folder)
    ledger.finish(claim, record, {})
    ledger.reconcile()
    assert claim.run not in pending(ledger.plan, ledger.out)
    assert claim.run in pending(ledger.plan, ledger.out, retry_failed=True)
    train_all(ledger)
    ledger.reconcile(retry_failed=True)
    assert [r.run for r in (ledger.claim()[0],)] == [claim.run]
    assert run_record.read(claim.folder / "attempts" / "1.json").reason == "the loss is not finite"
    assert states(ledger) == {"FAIL": 1, "COMPLETE": 1, "RUNNING": 1}


def test_a_changed_config_is_missing_and_stale_trials_are_left_alone(make_plan, open_ledger):
    old = make_plan()
    ledger = open_ledger(old)
    claim, _ = ledger.claim()
    train_claimed(ledger, claim)
    before = (claim.folder / "record.json").read_bytes()
    new = make_plan(overrides=["trainer.steps=31"])
    assert pending(new, ledger.out) == new.runs
    renewed = open_ledger(new)
    assert train_all(renewed) == list(new.runs)
    assert states(renewed) == {"COMPLETE": 5, "WAITING": 3}
    assert (claim.folder / "record.json").read_bytes() == before
    assert len(pending(old, ledger.out)) == 3


def test_other_data_are_another_run(make_plan, open_ledger, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "abcdefgh":
        (corpus / f"{name}.txt").write_text(name * 500)
    overrides = [f"data.corpus=text:{corpus}"]
    first = make_plan(overrides=overrides)
    ledger = open_ledger(first)
    train_all(ledger)
    (corpus / "a.txt").write_text("z" * 500)
    from core.data import corpora

    corpora._load.cache_clear()  # as in another process
    second = make_plan(overrides=overrides)
    assert [run.run_hash for run in second.runs] == [run.run_hash for run in first.runs]
    assert pending(second, ledger.out) == second.runs
    renewed = open_ledger(second)
    assert train_all(renewed) == list(second.runs)
    assert pending(second, ledger.out) == pending(first, ledger.out) == ()
    assert states(renewed) == {"COMPLETE": 8}


@pytest.mark.parametrize("scheme", ["journal", "sqlite"])
def test_levels_may_change_between_sweeps(make_plan, open_ledger, tmp_path, scheme):
    """Optuna refuses new choices for a parameter that it knows."""
    url = f"sqlite:///{tmp_path}/runs.db" if scheme == "sqlite" else None
    key = "objective.load_balancing_weight"
    plans = [make_plan(factors=(Factor(key, levels),)) for levels in ((0.0, 0.01), (0.0, 0.01, 0.1), (0.01, 0.0))]
    plans.append(plans[0])
    for plan in plans:
        ledger = open_ledger(plan, url=url)
        train_all(ledger)
    trials = ledger._study.get_trials()
    assert states(ledger) == {"COMPLETE": 6}
    assert [trial.params for trial in trials[:2]] == [{key: 0.01}, {key: 0.0}]
    assert [trial.params for trial in trials[4:]] == [{f"{key}#2": 0.1}] * 2
    assert [trial.user_attrs["settings"][key] for trial in trials] == [0.01, 0.0, 0.01, 0.0, 0.1, 0.1]


def test_records_without_a_journal_are_adopted_once(make_plan, open_ledger):
    plan = make_plan()
    ledger = open_ledger(plan)
    train_all(ledger)
    (ledger.out / "journal.log").unlink()
    fresh = open_ledger(plan)
    fresh.reconcile()
    assert states(fresh) == {"COMPLETE": 4}
    assert [trial.value for trial in fresh._study.get_trials()] == [2.01, 2.0, 3.01, 3.0]


def test_a_damaged_record_is_set_aside_and_its_run_trained(ledger):
    train_all(ledger)
    folder = run_folder(ledger.plan, ledger.plan.runs[0], ledger.out)
    (folder / "record.json").write_text('{"schema": 1, "sta')
    assert pending(ledger.plan, ledger.out) == (ledger.plan.runs[0],)
    ledger.reconcile()
    claim, _ = ledger.claim()
    assert (folder / "attempts" / "1.json").read_text() == '{"schema": 1, "sta'
    train_claimed(ledger, claim)
    assert pending(ledger.plan, ledger.out) == ()
    complete = [t for t in ledger._study.get_trials() if t.state == TrialState.COMPLETE]
    assert Counter(t.user_attrs["run_hash"] for t in complete) == {run.run_hash: 1 for run in ledger.plan.runs}


def test_a_complete_record_without_the_metric_is_a_failed_trial(make_plan, open_ledger):
    ledger = open_ledger(make_plan(metric="val/excess_nelbo"))
    claim, _ = ledger.claim()
    train_claimed(ledger, claim)
    trial = ledger._study.get_trials()[0]
    assert trial.state == TrialState.FAIL
    assert "no finite val/excess_nelbo" in trial.user_attrs["reason"]
    ledger.reconcile()
    assert states(ledger) == {"FAIL": 1, "WAITING": 3}


def test_a_record_from_a_sweep_on_another_storage_is_never_touched(make_plan, open_ledger, tmp_path):
    plan = make_plan(seeds=(0,))
    mine, other = open_ledger(plan), open_ledger(plan, url=f"sqlite:///{tmp_path}/runs.db")
    train_all(other)
    paths = [run_folder(plan, run, mine.out) / "record.json" for run in plan.runs]
    before = [path.stat().st_ino for path in paths]
    assert mine.claim() == (None, False)
    assert [path.stat().st_ino for path in paths] == before
    assert states(mine) == states(other) == {"COMPLETE": 2}


def test_a_database_serves_one_folder_of_runs(make_plan, open_ledger, tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    open_ledger(make_plan(), tmp_path / "mine", url)
    (tmp_path / "mine").rename(tmp_path / "moved")
    open_ledger(make_plan(), tmp_path / "moved", url)
    with pytest.raises(UserError, match="belongs to another folder"):
        open_ledger(make_plan(), tmp_path / "other", url)


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        RunLock(tmp_path / "run").acquire()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
        signal.pause()
    child = int(os.read(reader, 100))
    second = RunLock(tmp_path / "run")
    assert not second.acquire()
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        assert second.acquire()
    finally:
        os.kill(child, signal.SIGKILL)


def test_cleaning_keeps_locks_attempts_checkpoints_and_wandb(tmp_path):
    for name in ("model.safetensors", "progress.json"):
        (tmp_path / name).touch()
    for name in ("checkpoints", "wandb", "attempts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.json").touch()
    lock = RunLock(tmp_path)
    assert lock.acquire()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "attempts", "checkpoints", "wandb"]
    assert not RunLock(tmp_path).acquire()
    lock.release()


def test_a_claim_that_is_stopped_while_it_waits_for_room_waits_again(make_plan, open_ledger, monkeypatch):
    ledger = open_ledger(make_plan())

    def stopped(folder):
        raise SystemExit(143)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("sweeps.runs.ledger.clean", stopped)
        ledger.claim()
    assert states(ledger) == {"WAITING": 4, "FAIL": 1}
    assert len(train_all(ledger)) == 4  # its lock is free, and its run comes again
    assert states(ledger) == {"COMPLETE": 4, "FAIL": 1}
