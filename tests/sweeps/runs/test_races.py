"""Many processes on one ledger: each run is trained by one of them, and told once."""

import contextlib
import multiprocessing
import os
import time
from collections import Counter

import pytest
from optuna.trial import TrialState

from sweeps.runs.folders import pending
from sweeps.runs.ledger import Ledger
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.postgres import served
from tests.sweeps.trainers import quick


def _race(plan, out, url, ready, results):
    ledger = Ledger(plan, out, open_storage(url))
    ready.wait(60)
    while (claim := ledger.claim()[0]) is not None:
        results.put((claim.run.run_hash, os.getpid()))
        time.sleep(0.02)
        ledger.finish(claim, quick(claim.run.config, claim.folder), {})
    results.put(None)


def race(plan, out, url, racers, queue_by=None):
    """Who claimed what, once all runs of the plan have been claimed and told by so many processes."""
    Ledger(plan, out, open_storage(queue_by or url)).reconcile()
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=_race, args=(plan, out, url, ready, results)) for _ in range(racers)]
    for process in processes:
        process.start()
    claimed, ended = [], 0
    while ended < racers:
        item = results.get(timeout=90)
        ended += item is None
        claimed += [item] if item else []
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * racers
    return claimed


def assert_each_once(plan, out, url, claimed):
    assert Counter(run_hash for run_hash, _ in claimed) == {run.run_hash: 1 for run in plan.runs}
    assert len({pid for _, pid in claimed}) > 1
    assert pending(plan, out) == ()
    trials = Ledger(plan, out, open_storage(url))._study.get_trials()
    assert Counter(t.user_attrs["run_hash"] for t in trials) == {run.run_hash: 1 for run in plan.runs}
    assert {t.state for t in trials} == {TrialState.COMPLETE}


def test_thirty_two_processes_on_the_journal(make_plan, tmp_path):
    plan, out = make_plan(seeds=range(50)), tmp_path / "out"
    url = default_url(out)
    assert_each_once(plan, out, url, race(plan, out, url, 32))


def test_thirty_two_processes_on_postgres(make_plan, tmp_path, database):
    plan, out = make_plan(seeds=range(50)), tmp_path / "out"
    assert_each_once(plan, out, database, race(plan, out, database, 32))


@pytest.mark.slow
def test_eight_processes_on_sqlite(make_plan, tmp_path):
    plan, out, url = make_plan(seeds=range(20)), tmp_path / "out", f"sqlite:///{tmp_path}/runs.db"
    assert_each_once(plan, out, url, race(plan, out, url, 8))


def _refused(storage, trials, ready, results):
    """Compare and set alone, without the lock of the run's folder."""
    mine = open_storage(storage)
    ready.wait(60)
    won = []
    for trial_id in trials:
        with contextlib.suppress(Exception):
            won += [trial_id] if mine.set_trial_state_values(trial_id, TrialState.RUNNING) else []
    results.put(won)


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgres"])
def test_the_storage_alone_gives_a_trial_to_one_of_many(make_plan, tmp_path, kind, request):
    plan, out = make_plan(seeds=range(20)), tmp_path / "out"
    url = {"journal": default_url(out), "sqlite": f"sqlite:///{tmp_path}/runs.db"}.get(kind)
    url = url or request.getfixturevalue("database")
    ledger = Ledger(plan, out, open_storage(url))
    ledger.reconcile()
    trials = [trial._trial_id for trial in ledger._study.get_trials()]
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_refused, args=(url, trials, ready, results)) for _ in range(6)]
    for process in processes:
        process.start()
    won = [trial_id for _ in processes for trial_id in results.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(won) == sorted(trials)


def test_eight_processes_through_a_proxy(make_plan, tmp_path, database):
    plan, out = make_plan(seeds=range(20)), tmp_path / "out"
    with served(database) as url:
        claimed = race(plan, out, url, 8, queue_by=database)  # a process that used gRPC can't be forked
        assert_each_once(plan, out, database, claimed)
