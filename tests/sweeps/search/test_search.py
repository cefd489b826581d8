"""A whole search on a known landscape: what is trained, what goes on, what is told, whatever dies meanwhile."""

import contextlib
import json
from collections import Counter, defaultdict

import pytest
from optuna.trial import TrialState

from core.data.corpora import load
from core.errors import UserError
from core.records import run_record
from sweeps.launch.local import run as search_here
from sweeps.launch.worker import StopRequestedError
from sweeps.runs.folders import LOCK_FILE, recorded, run_folder
from sweeps.search.plan import SearchPlan, plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import Results, confirmation
from sweeps.search.spec import Budget, Choice, Int, Log
from sweeps.search.status import status
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.postgres import served
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import RATE, ROUTER, SPACE, WEIGHT, declare, work
from tests.sweeps.trainers import overwrite

TOKENS = 36 * 4 * 16  # of a run


def trials(found):
    return [trial for tuner in found.ledger.tuners for trial in tuner.trials()]


def test_halving_trains_on_from_where_runs_paused(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    found = run(seeds=(0, 1))
    trained = defaultdict(list)
    for line in (tmp_path / "steps").read_text().splitlines():
        run_hash, start, end, _ = line.split()
        trained[run_hash].append((int(start), int(end)))
    assert len(trained) == 18
    for parts in trained.values():  # every step once
        assert parts in ([(0, 4)], [(0, 4), (4, 12)], [(0, 4), (4, 12), (12, 36)])
    by_end = Counter(parts[-1][1] for parts in trained.values())
    assert by_end == {4: 12, 12: 4, 36: 2}
    assert found.ledger.counts() == {"complete": 1, "pruned": 8}
    spent = sum(trial.user_attrs["tokens"] for trial in trials(found))
    assert spent == sum(c.tokens for c in found.results.configurations) == TOKENS * (12 * 4 + 4 * 12 + 2 * 36) / 36


def test_records_and_trials_say_the_same(run) -> None:
    found = run()
    told = {trial.user_attrs["arm"][:10]: trial for trial in trials(found)}
    for configuration in found.results.configurations:
        trial = told[configuration.arm[2:]]
        assert (trial.number, trial.user_attrs["settings"]) == (configuration.trial, configuration.settings)
        assert trial.state == (TrialState.COMPLETE if configuration.status == "complete" else TrialState.PRUNED)
        (record,) = configuration.records
        assert record.study["search"]["trial"] == trial.number and record.study["design"]["kind"] == "search"
        if configuration.status == "complete":
            assert trial.values == [record.metrics["val/nelbo"]] == list(configuration.values)
        else:
            tokens, value = max(trial.intermediate_values.items())
            assert (tokens, value) == (record.validation["tokens"][-1], record.metrics["val/nelbo"])
            assert trial.user_attrs["reason"] == "not among the best at its last rung"


def test_one_worker_with_the_same_seed_makes_the_same_search(run, tmp_path) -> None:
    first, again, other = (
        [c.settings for c in run(out=tmp_path / str(place), seed=seed, budget=Budget(trials=14)).results.configurations]
        for place, seed in enumerate((0, 0, 1))
    )
    assert first == again and first != other


def test_a_larger_budget_goes_on_with_the_same_search(run, tmp_path) -> None:
    few = run(budget=Budget(trials=6))
    before = {path: path.read_bytes() for path in few.out.rglob("record.json") if b'"complete"' in path.read_bytes()}
    more = run(budget=Budget(trials=14))
    assert len(more.results.configurations) == 14
    assert {path: path.read_bytes() for path in before} == before
    assert [c.settings for c in more.results.configurations[:6]] == [c.settings for c in few.results.configurations]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cma_es", "qmc", "nsga2")]


@pytest.mark.parametrize("sampler", ["tpe", "random", *SLOW])
def test_every_sampler_searches_and_starts_with_the_control(run, sampler) -> None:
    found = run(sampler=sampler, pruner="none", budget=Budget(trials=20), space=SPACE)
    assert found.ledger.counts()["complete"] == 20
    assert found.results.configurations[0].settings == {RATE: 0.004, WEIGHT: 0.01, "model.top_k": 2}
    assert len({json.dumps(c.settings) for c in found.results.configurations}) == 20


@pytest.mark.slow
def test_tpe_learns_where_random_search_does_not(run, tmp_path) -> None:
    space = {RATE: Log(1e-5, 0.4), WEIGHT: Log(1e-6, 10.0)}
    means = {}
    for sampler in ("tpe", "random"):
        values = []
        for seed in range(2):
            found = run(out=tmp_path / f"{sampler}{seed}", sampler=sampler, pruner="none", space=space, seed=seed,
                        budget=Budget(trials=30))  # fmt: skip
            values += [c.values[0] for c in found.results.configurations[15:]]
        means[sampler] = sum(values) / len(values)
    assert means["tpe"] < means["random"] - 0.3


def test_hyperband_starts_some_configurations_at_higher_rungs(run) -> None:
    found = run(pruner="hyperband", budget=Budget(trials=18))
    brackets = Counter(trial.user_attrs["bracket"] for trial in trials(found))
    assert brackets == {0: 10, 1: 5, 2: 3}
    for trial in trials(found):
        reached = [round(tokens / 64) for tokens in trial.intermediate_values]
        assert reached == [4, 12][trial.user_attrs["bracket"] :][: len(reached)]
        assert trial.user_attrs["bracket"] < 2 or trial.state == TrialState.COMPLETE


def test_wilcoxon_stops_over_seeds(run) -> None:
    found = run(pruner="wilcoxon", seeds=range(6), budget=Budget(trials=8))
    counts = found.ledger.counts()
    assert counts["complete"] >= 1 and counts["pruned"] >= 3
    for trial in trials(found):
        assert trial.state != TrialState.PRUNED or 3 <= len(trial.intermediate_values) < 6
    assert any("Wilcoxon" in trial.user_attrs.get("reason", "") for trial in trials(found))


def test_each_level_of_a_comparison_gets_the_same_budget(run) -> None:
    space = SPACE | {ROUTER: Choice(("topk", "bias_balanced"))}
    found = run(space=space, compare=ROUTER, budget=Budget(trials=7))
    groups = found.results.groups()
    assert {name: len(configurations) for name, configurations in groups.items()} == {"topk": 7, "bias_balanced": 7}
    assert all(c.settings[ROUTER] == name for name, many in groups.items() for c in many)
    assert list(found.results.finalists()) == ["winner-bias_balanced", "winner-topk"]
    confirming = confirmation(found.plan, found.results)
    assert confirming.design.control == confirming.design.arms[0].name == "control"
    assert {run.seed for run in confirming.runs} == {1000, 1001, 1002}
    blocks = Counter(run.seed for run in confirming.runs)
    assert len(set(blocks.values())) == 1  # every arm on every seed
    assert not {run.seed for run in confirming.runs} & set(found.plan.search.seeds)


def test_a_budget_of_tokens_is_spent_and_not_much_more(run) -> None:
    found = run(budget=Budget(tokens=6 * TOKENS), pruner="none")
    assert sum(c.tokens for c in found.results.configurations) == 6 * TOKENS
    halved = run(budget=Budget(tokens=6 * TOKENS), pruner="asha", out=found.out / "asha")
    spent = sum(c.tokens for c in halved.results.configurations)
    assert 6 * TOKENS <= spent <= 8 * TOKENS and len(halved.results.configurations) > 15


def test_infeasible_points_are_told_and_not_trained(run) -> None:
    settings = {key: value for key, value in declare().settings.items() if key != "model.num_experts"}
    space = SPACE | {"model.num_experts": Choice((2, 4)), "model.top_k": Int(1, 4)}
    found = run(space=space, settings=settings, control={"model.num_experts": 4}, budget=Budget(trials=12))
    apart = [trial for trial in trials(found) if trial.constraints]
    assert apart and found.ledger.counts()["infeasible"] == len(apart)
    for trial in apart:
        assert trial.constraints["top_k <= num_experts"] == trial.params["model.top_k"] - 2 > 0
        assert trial.state == TrialState.PRUNED and trial.user_attrs["reason"].startswith("infeasible: top-k")
    assert len(found.results.configurations) == 12
    assert all(c.settings["model.top_k"] <= c.settings["model.num_experts"] for c in found.results.configurations)


def test_a_run_that_fails_is_told_with_its_reason_and_the_search_goes_on(run) -> None:
    found = run(space={RATE: Log(1e-4, 10.0)}, sampler="random", budget=Budget(trials=12))
    failed = [trial for trial in trials(found) if trial.state == TrialState.FAIL]
    assert failed and found.ledger.counts()["fail"] == len(failed)
    assert all("FloatingPointError: the loss is not finite" in trial.user_attrs["reason"] for trial in failed)
    states = Counter(c.status for c in found.results.configurations)
    assert states["failed"] == len(failed) and states["complete"] >= 1
    bad = next(c for c in found.results.configurations if c.status == "failed")
    assert bad.records[0].status == "failed" and bad.settings[RATE] > 0.5


def test_samplers_shun_what_failed(run) -> None:
    found = run(space={RATE: Log(1e-4, 1e4), WEIGHT: Log(1e-4, 1.0)}, budget=Budget(trials=50), pruner="none")
    late = [c.settings[RATE] > 0.5 for c in found.results.configurations[25:]]
    assert sum(late) / len(late) < 0.3  # half of the space fails


def test_a_space_that_is_used_up_ends_the_search(run) -> None:
    found = run(space={"model.top_k": Int(1, 4)}, budget=Budget(trials=30), pruner="none")
    assert sorted(c.settings["model.top_k"] for c in found.results.configurations) == [1, 2, 3, 4]
    assert any("the same config as trial" in trial.user_attrs.get("reason", "") for trial in trials(found))


def test_several_objectives_give_the_pareto_front(run) -> None:
    found = run(metric=("val/nelbo", "load/max_vio"), sampler="nsga2", budget=Budget(trials=24))
    configurations = found.results.configurations
    front = {c.trial for c in found.results.pareto("")}
    for c in configurations:
        dominated = any(
            all(a <= b for a, b in zip(other.values, c.values, strict=True)) and other.values != c.values
            for other in configurations
        )
        assert (c.trial in front) != dominated
    assert front == {trial.number for trial in found.ledger.tuners[0].study.best_trials}
    assert set(found.results.finalists()) <= {"winner-nelbo", "winner-max_vio"}


def test_what_a_dead_worker_trained_is_queued_again_and_given_up_in_the_end(run) -> None:
    lost = []

    def train(config, folder, **rest):
        if config.optimizer.learning_rate != 0.004 and len(lost) < 3:
            lost.append(config)
            raise SystemExit("as if it had been killed")  # past every handler: nothing is told
        return trainers.landscape(config, folder, **rest)

    for _ in range(20):
        try:
            found = run(train=train, budget=Budget(trials=9), sampler="random")
            break
        except SystemExit:
            continue
    assert not any(trial.state == TrialState.RUNNING for trial in trials(found))
    given_up = [t for t in trials(found) if t.state == TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in given_up] == ["lost: worker died 3 times (out of memory?)"]
    assert len(lost) == 3 and len(set(lost)) == 1 and len(trials(found)) == 9


def test_a_stopped_worker_leaves_its_trial_to_the_next(run) -> None:
    calls = []

    def stop(config, folder, **rest):
        calls.append(config)
        if len(calls) == 3:
            raise StopRequestedError(143)
        return trainers.landscape(config, folder, **rest)

    with pytest.raises(StopRequestedError):
        run(train=stop)
    found = run()
    assert found.ledger.counts() == {"complete": 1, "pruned": 8}
    untouched = run(out=found.out.parent / "other")
    assert [c.settings for c in found.results.configurations] == [c.settings for c in untouched.results.configurations]


def test_a_worker_that_lost_its_configuration_leaves_it_to_the_other(tmp_path, run) -> None:
    slept, out = [], tmp_path / "out"

    def train(config, folder, **rest):
        if not slept:  # meanwhile its lock is lost, and another worker does the whole search
            slept.append(folder)
            (folder.parent / LOCK_FILE).unlink()
            other = SearchLedger(plan("toy", declare(budget=Budget(trials=3))), out, open_storage(default_url(out)))
            assert [lost.gave_up for lost in other.reconcile()] == [False]
            work(other)
            slept.append({path: path.read_bytes() for path in out.rglob("*.json")})
        return trainers.landscape(config, folder, **rest)

    found = run(train=train, budget=Budget(trials=3))
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == slept[1]
    assert [event["event"] for event in found.heard] == ["started", "lost"]
    assert "trial 0 was taken over by another process" in found.heard[1]["text"]
    assert {trial.state for trial in trials(found)} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_search_keeps_to_its_folder(run, tmp_path) -> None:
    found = run()
    with pytest.raises(UserError, match="belongs to another folder"):
        SearchLedger(found.plan, tmp_path / "elsewhere", open_storage(default_url(found.out)))


def test_runs_of_an_earlier_search_are_taken_over(run, tmp_path, monkeypatch) -> None:
    first = run(pruner="none", budget=Budget(trials=3))
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    second = run(pruner="none", budget=Budget(trials=3), seed=1)
    assert len((tmp_path / "steps").read_text().splitlines()) == 2  # the control is there already
    assert len(second.results.configurations) == 3
    assert first.results.configurations[0].records == second.results.configurations[0].records


@pytest.mark.parametrize("url", ["", pytest.param("sqlite:///{out}/search.db", marks=pytest.mark.slow)])
def test_workers_share_a_search_and_dead_ones_are_replaced(tmp_path, monkeypatch, url) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    planned, out, heard = plan("toy", declare(budget=Budget(trials=12))), tmp_path / "out", []
    out.mkdir()
    done = search_here(
        planned, out, storage_url=url.format(out=out) or None, workers=3, on_event=heard.append,
        trainer="tests.sweeps.search.trainers:deadly",
    )  # fmt: skip
    counts = done.states
    assert not done.interrupted and counts["complete"] >= 1 and counts["complete"] + counts["pruned"] == 12
    assert sum(event.kind == "lost" for event in heard) == 2
    parts = [tuple(line.split()[:3]) for line in (tmp_path / "steps").read_text().splitlines()]
    assert len(parts) == len(set(parts))  # nothing is trained twice
    assert len(Results.load(out / "toy").configurations) == 12
    assert search_here(planned, out, storage_url=url.format(out=out) or None, workers=1).states == counts


def test_a_plan_can_be_rebuilt_from_its_design() -> None:
    planned = plan("toy", declare(), overrides=["trainer.batch_size=8"])
    again = SearchPlan.from_json(json.loads(json.dumps(planned.to_json())))
    assert again.design == planned.design and again.resolver.control == planned.resolver.control
    assert again.groups == planned.groups


def test_a_run_of_other_data_than_planned_fails(run) -> None:
    def train(config, folder, **rest):
        record = trainers.landscape(config, folder, **rest)
        moved = run_record.RunRecord(**(vars(record) | {"data_fingerprint": "markov:other"}))
        overwrite(moved, folder)
        return moved

    found = run(train=train, budget=Budget(trials=2))
    assert all("data changed" in trial.user_attrs["reason"] for trial in trials(found))
    first = found.plan.runs_of(found.plan.resolver.control_settings, found.plan.resolver.control)[0]
    record = recorded(run_folder(found.plan, first, found.out), first)
    assert record.status == "failed" and record.data_fingerprint == load(found.plan.resolver.control.data).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "proxied"), [(4, False), (2, True)], ids=["postgres", "proxy"])
def test_workers_search_the_whole_budget_and_train_no_step_twice(out, database, monkeypatch, workers, proxied) -> None:
    monkeypatch.setenv("STEPS", str(out.parent / "steps"))
    planned = plan("toy", declare(budget=Budget(trials=24)))
    with served(database) if proxied else contextlib.nullcontext(database) as url:
        done = search_here(
            planned, out, storage_url=url, workers=workers, trainer="tests.sweeps.search.trainers:sluggish"
        )
        now = status("toy", out, url)
        names = [known.study_name for known in open_storage(url).get_all_studies()]
    counts = done.states
    assert not done.interrupted and counts["complete"] >= 1 and counts["complete"] + counts["pruned"] == 24
    lines = [line.split() for line in (out.parent / "steps").read_text().splitlines()]
    parts = Counter(tuple(line[:3]) for line in lines)
    assert set(parts.values()) == {1} and len({line[3] for line in lines}) > 1
    assert len({line[0] for line in lines}) == 24
    found = Results.load(out / "toy")
    assert len(found.configurations) == len({c.arm for c in found.configurations}) == 24
    assert now.over and now.counts["finished"] == counts["complete"] and now.deaths == 0
    assert names == [group.study for group in planned.groups]
