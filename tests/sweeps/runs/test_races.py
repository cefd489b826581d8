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
from sweeps.storage.storage import open_storage
from tests.sweeps.ledgers import opened
from tests.sweeps.postgres import served
from tests.sweeps.trainers import quick


def at_once(racers, work, *arguments):
    """Start so many processes together; return what they put into their queue, each of them None at its end."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(racers), context.Queue()

    processes = [context.Process(target=work, args=(*arguments, ready, results)) for _ in range(racers)]
    for process in processes:
        process.start()
    found, ended = [], 0
    while ended < racers:
        item = results.get(timeout=90)
        ended += item is None
        found += [item] if item else []
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * racers
    return found


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
    opened(plan, out, queue_by or url)
    return at_once(racers, _race, plan, out, url)


def assert_each_once(plan, out, url, claimed):
    assert Counter(run_hash for run_hash, _ in claimed) == {run.run_hash: 1 for run in plan.runs}
    assert len({pid for _, pid in claimed}) > 1
    assert pending(plan, out) == ()
    trials = Ledger(plan, out, open_storage(url))._study.get_trials()
    assert Counter(t.user_attrs["run_hash"] for t in trials) == {run.run_hash: 1 for run in plan.runs}
    assert {t.state for t in trials} == {TrialState.COMPLETE}


@pytest.fixture
def url(request, tmp_path):
    """The URL of a new storage of the kind that the test is parametrised by."""
    files = {"journal": f"journal:{tmp_path}/runs.log", "sqlite": f"sqlite:///{tmp_path}/runs.db"}
    return files.get(request.param) or request.getfixturevalue("database")


@pytest.mark.parametrize(
    ("url", "racers"),
    [("journal", 32), ("postgres", 32), pytest.param("sqlite", 8, marks=pytest.mark.slow)],
    indirect=["url"],
)
def test_many_processes_train_each_run_once(make_plan, out, url, racers):
    plan = make_plan(seeds=range(50 if racers == 32 else 20))
    assert_each_once(plan, out, url, race(plan, out, url, racers))


def _claim_alone(storage, trials, ready, results):
    """Compare and set alone, without the lock of the run's folder."""
    mine = open_storage(storage)
    ready.wait(60)
    for trial_id in trials:
        with contextlib.suppress(Exception):
            if mine.set_trial_state_values(trial_id, TrialState.RUNNING):
                results.put((trial_id,))
    results.put(None)


@pytest.mark.parametrize("url", ["journal", "sqlite", "postgres"], indirect=True)
def test_the_storage_alone_gives_a_trial_to_one_of_many(make_plan, out, url):
    ledger = opened(make_plan(seeds=range(20)), out, url)
    trials = [trial._trial_id for trial in ledger._study.get_trials()]
    assert sorted(at_once(6, _claim_alone, url, trials)) == sorted((trial_id,) for trial_id in trials)


def test_eight_processes_through_a_proxy(make_plan, tmp_path, database):
    plan, out = make_plan(seeds=range(20)), tmp_path / "out"
    with served(database) as url:
        claimed = race(plan, out, url, 8, queue_by=database)  # a process that used gRPC can't be forked
        assert_each_once(plan, out, database, claimed)
