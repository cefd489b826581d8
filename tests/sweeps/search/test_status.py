"""Status of a search, read while it runs and after every kind of failure."""

import json
import subprocess
from collections import Counter

import pytest
from optuna.trial import TrialState

from core.errors import UserError
from core.records.designs import Design
from core.records.run_record import write_atomically
from sweeps.launch.worker import StopRequestedError
from sweeps.runs.array_tasks import Place
from sweeps.runs.folders import run_folder, write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.liveness import Workplace
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import Results, confirmation
from sweeps.search.samplers import SamplerView
from sweeps.search.spec import Budget, Choice, Log
from sweeps.search.status import status
from sweeps.storage.storage import default_url, open_storage
from tests.analysis.conftest import make_design
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import RATE, ROUTER, SPACE, declare, work


def stopping_after(trainings: int):
    """A trainer whose worker is told to stop in the middle of a training."""
    calls = []

    def train(config, folder, **rest):
        calls.append(config)
        if len(calls) > trainings:
            raise StopRequestedError(143)
        return trainers.landscape(config, folder, **rest)

    return train


def reader(out, workplace=None, **changes):
    """A ledger on the search of a folder, and where that stands."""
    planned = plan("toy", declare(**changes))
    ledger = SearchLedger(planned, out, open_storage(default_url(out)), workplace or Workplace())
    write_design(ledger.folder, planned.design)
    return ledger, lambda: status("toy", out)


def test_a_finished_search_waits_for_its_confirmation(run) -> None:
    found = run()
    now = status("toy", found.out)
    assert now.counts == {
        "running": 0, "queued": 0, "paused": 0, "finished": 1, "pruned": 8, "failed": 0, "lost": 0
    }  # fmt: skip
    assert now.over and now.is_under_way and now.undrawn == 0 and now.confirmation is None
    [best] = now.of("finished")
    assert best.value == found.results.best("").values[0] and best.settings == found.results.best("").settings
    assert {row.until for row in now.of("pruned")} == {4, 12}
    assert now.tokens == sum(c.tokens for c in found.results.configurations)
    confirming = confirmation(found.plan, found.results)
    ledger = Ledger(confirming, found.out, open_storage(default_url(found.out)))
    write_design(found.out / confirming.study_name, confirming.design)
    ledger.reconcile()
    now = status("toy", found.out)
    assert now.is_under_way and now.confirmation.counts["queued"] == len(confirming.runs)
    while (claim := ledger.claim()[0]) is not None:
        ledger.finish(claim, trainers.landscape(claim.run.config, claim.folder), {})
    assert not status("toy", found.out).is_under_way


def test_what_a_stopped_worker_leaves_waits_paused_or_queued(run, tmp_path) -> None:
    with pytest.raises(StopRequestedError):
        run(train=stopping_after(5))  # three at the first rung, one of them at the second, then another drawn
    now = status("toy", tmp_path / "out")
    assert now.counts["paused"] == 4 and now.counts["queued"] == 1 and now.undrawn == 4 and not now.over
    assert sorted(row.until for row in now.of("paused")) == [4, 4, 4, 12]
    assert now.seconds_left is None and now.preempted == now.deaths == 0  # nobody trains


def test_a_running_configuration_says_who_trains_it_and_how_far(tmp_path) -> None:
    ledger, look = reader(tmp_path / "out", Workplace(Place("77", "3", 0)), seeds=(0, 1))
    claim, _ = ledger.claim()
    runs = ledger.plan.runs_of(claim.job.settings, claim.job.config)
    for run, step in zip(runs, (4, 1), strict=True):
        folder = run_folder(ledger.plan, run, ledger.out)
        row = {"step": step, "steps": 36, "loss": 1.0, "started": 0.0, "updated": 1.0}
        write_atomically(folder / "progress.json", json.dumps(row))
    [row] = look().configurations
    assert row.state == "running" and row.where.startswith("77_3 on ") and (row.step, row.steps) == (5, 8)
    assert row.until == 4 and row.seconds_left is None and look().seconds_left is None  # nothing measured yet
    claim.tuner.put_back(claim.job, 0.0)
    claim.lock.release()
    now = look()
    assert now.preempted == 1 and now.counts["queued"] == 1
    claim, _ = ledger.claim()
    claim.tuner.report_rung(claim.job, [2.0, 2.0], 512.0)
    claim.lock.release()
    ledger.claim()
    now = look()
    assert now.counts["running"] == now.counts["paused"] == 1 and now.seconds_left > 0
    assert {row.value for row in now.of("paused")} == {2.0}


def test_a_dead_workers_configuration_is_lost_until_it_is_queued_again(tmp_path) -> None:
    ledger, look = reader(tmp_path / "out")
    claim, _ = ledger.claim()
    assert look().counts["running"] == 1
    dead = subprocess.Popen(["true"])
    dead.wait()
    ledger._storage.set_trial_user_attr(claim.job.trial_id, "pid", dead.pid)
    [row] = look().of("lost")
    assert row.reason == "its worker is dead"
    claim.lock.release()  # as its death does
    assert "0 failed and 1 lost" in ledger.queue_again(retry_failed=False)
    now = look()
    assert now.counts["queued"] == 1 and now.deaths == 1


def test_groups_and_budgets_of_tokens(run, tmp_path) -> None:
    space = SPACE | {ROUTER: Choice(("topk", "bias_balanced"))}
    found = run(space=space, compare=ROUTER, budget=Budget(tokens=5000), pruner="none")
    now = status("toy", found.out)
    assert now.over and now.undrawn is None and now.tokens >= now.budget_tokens == 10000
    assert {row.label for row in now.of("finished")} > {"trial 0 (topk)", "trial 0 (bias_balanced)"}


def test_a_space_that_is_used_up_is_over(run) -> None:
    found = run(space={"model.top_k": Choice((1, 2, 4))}, budget=Budget(trials=30), pruner="none")
    now = status("toy", found.out)
    assert now.over and now.undrawn == 0 and now.counts["finished"] == 3


def test_only_what_was_searched_has_a_status(tmp_path, run) -> None:
    with pytest.raises(UserError, match="nothing of toy has been run"):
        status("toy", tmp_path / "out")
    found = run()
    with pytest.raises(UserError, match="isn't there: name the one that toy was run with"):
        status("toy", found.out, f"journal:{tmp_path}/other.log")
    assert not (tmp_path / "other.log").exists()
    write_design(found.ledger.folder, Design.from_json(make_design()))
    with pytest.raises(UserError, match="holds an ablation's runs"):
        status("toy", found.out)


def mended(config, folder, **rest):
    """As landscape, but it fails at nothing any more once a file named `mended` lies beside the study's folder."""
    return trainers.landscape(config, folder, bound=100 if (folder.parents[2] / "mended").exists() else 0.5, **rest)


@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_failed_configurations_are_tried_again_within_the_budget(run, tmp_path, pruner) -> None:
    changes = {"space": {RATE: Log(1e-4, 10.0)}, "sampler": "random", "budget": Budget(trials=12), "pruner": pruner}
    found = run(train=mended, **changes)
    failed = {trial.number for trial in found.ledger.tuners[0].trials(TrialState.FAIL)}
    assert len(failed) >= 2 and status("toy", found.out).counts["failed"] == len(failed)
    (found.out / "mended").touch()
    assert "0 failed and 0 lost" in found.ledger.queue_again(retry_failed=False)  # only when asked to
    assert f"{len(failed)} failed and 0 lost" in found.ledger.queue_again(retry_failed=True)
    assert "0 failed and 0 lost" in found.ledger.queue_again(retry_failed=True)
    now = status("toy", found.out)
    assert now.counts["queued"] == len(failed) and now.counts["failed"] == 0 and now.undrawn == 0
    work(found.ledger, mended)
    now = status("toy", found.out)
    assert now.over and now.counts["failed"] == 0 and len(now.configurations) == 12
    counts = found.ledger.counts()
    assert (counts["complete"], counts["pruned"]) == (now.counts["finished"], now.counts["pruned"])
    assert sum(counts.values()) == 12
    assert len(list(found.out.rglob("attempts/1.json"))) == len(failed)
    assert Counter(c.status for c in Results.load(found.ledger.folder).configurations)["failed"] == 0


def test_samplers_see_a_failure_that_was_tried_again_as_its_second_try_alone(run) -> None:
    found = run(train=mended, space={RATE: Log(1e-4, 10.0)}, sampler="random", budget=Budget(trials=12), pruner="none")
    tuner = found.ledger.tuners[0]
    seen = SamplerView(found.ledger._storage)
    failed = {trial.number for trial in tuner.trials(TrialState.FAIL)}
    shown = {trial.number: trial.state for trial in seen.get_all_trials(tuner._id)}
    assert {shown[number] for number in failed} == {TrialState.PRUNED}
    (found.out / "mended").touch()
    found.ledger.reconcile(retry_failed=True)
    work(found.ledger, mended)
    shown = {trial.number: trial for trial in seen.get_all_trials(tuner._id)}
    assert {shown[number].state for number in failed} == {TrialState.FAIL}
    second = [trial for trial in shown.values() if trial.user_attrs.get("retries") in failed]
    assert len(second) == len(failed) and {trial.state for trial in second} == {TrialState.COMPLETE}
    for trial in second:
        former = shown[trial.user_attrs["retries"]]
        assert trial.params == former.params and trial.user_attrs["settings"] == former.user_attrs["settings"]


def test_what_is_given_up_leaves_a_record_and_can_be_tried_again(run, tmp_path) -> None:
    deaths = []

    def train(config, folder, **rest):
        if config.seed == 1 and config.optimizer.learning_rate == 0.004 and len(deaths) < 3:
            deaths.append(config)
            raise SystemExit("as if it had been killed")
        return trainers.landscape(config, folder, **rest)

    for _ in range(3):
        with pytest.raises(SystemExit):
            run(train=train, budget=Budget(trials=3), pruner="none", seeds=(0, 1))
    found = run(train=train, budget=Budget(trials=3), pruner="none", seeds=(0, 1))
    now = status("toy", found.out)
    assert now.deaths == 3 and [row.trial for row in now.of("failed")] == [0]
    [given_up] = [c for c in found.results.configurations if c.status == "failed"]
    assert given_up.reason == "lost: worker died 3 times (out of memory?)"
    assert [record.status for record in given_up.records] == ["complete", "failed"]
    assert "1 failed and 0 lost" in found.ledger.queue_again(retry_failed=True)
    again = run(train=train, budget=Budget(trials=3), pruner="none", seeds=(0, 1))
    assert again.ledger.counts() == {"complete": 3}
