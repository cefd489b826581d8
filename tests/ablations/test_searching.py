"""The commands for searches, in this process or forked: starting each anew would take most of the time."""

import io
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablations.cli.kinds.search.report import _tokens_a_run, _unequal_tokens, answer_of, confirmed, print_report
from analysis.report.html import write_search
from analysis.study import Study
from analysis.verdicts.search import SearchAnswer
from core.config.loading import build
from core.runtime.terminal import Terminal
from core.training.run import train
from sweeps.launch.task import begin
from sweeps.launch.worker import StopSignal
from sweeps.runs.liveness import Workplace
from sweeps.search.importance import importances
from sweeps.search.plan import differing, plan
from sweeps.search.results import Results
from sweeps.spec import Log, Search
from sweeps.storage.storage import default_url, open_storage
from tests.ablations.shell import ROOT, ablate, mistake
from tests.forked import start, wait_until
from tests.sweeps.search.conftest import declare

DECLARATION = '''
"""A search small enough for a test."""
from sweeps.spec import Budget, Choice, Int, Log, Search

search = Search(
    question="Which rate suits a toy?",
    space={
        "optimizer.learning_rate": Log(1e-4, 3e-2),
        "model.router.kind": Choice(("topk", "bias_balanced")),
        "model.router.bias_update_rate": Log(1e-4, 1e-1, when={"model.router.kind": ("bias_balanced",)}),
        "objective.z_loss_weight": Log(1e-4, 1e-1, zero=True),
    },
    base="tiny",
    compare="model.router.kind",
    secondary=("load/max_vio",),
    budget=Budget(trials=4),
    confirm=4,
    settings={
        "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 16,
        "model.hidden_size": 16, "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 4,
        "model.expert_width": 8, "trainer.steps": 18, "trainer.batch_size": 4, "trainer.validate_every": 2,
        "trainer.log_every": 6,
    },
)
'''


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with the toy declared, searched and confirmed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "toy.py").write_text(DECLARATION)
    done = ablate("run", "toy.py", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(re.match(r"\d\d:\d\d:\d\d \w", line) for line in done.stderr.splitlines()), done.stderr
    assert "12 runs on fresh seeds" in done.stdout and "next: ablate report toy.py" in done.stdout, done.stdout
    assert "toy: {complete} complete, {paused} pruned".format(**outcome(folder)) in done.stdout, done.stdout
    return folder


def outcome(folder: Path) -> dict[str, int]:
    """Configurations that were completed and that were paused for good: at least one of each router, of eight in all.

    How many depends on which of two workers comes first: halving that doesn't wait may promote a configuration that a later
    one overtakes.
    """
    records = [json.loads(path.read_text()) for path in (folder / "runs" / "toy").rglob("record.json")]
    complete = [record["study"]["search"]["group"] for record in records if record["status"] == "complete"]
    assert set(complete) == {"topk", "bias_balanced"} and len(complete) < len(records) == 8
    return {"complete": len(complete), "paused": len(records) - len(complete)}


def test_a_second_run_trains_nothing(searched) -> None:
    before = {path: path.read_bytes() for path in searched.rglob("record.json")}
    again = ablate("run", "toy.py", cwd=searched)
    assert again.returncode == 0 and "12 runs on fresh seeds" in again.stdout
    assert {path: path.read_bytes() for path in searched.rglob("record.json")} == before


def test_the_report_shows_both_kinds_of_estimates_for_what_they_are(searched) -> None:
    content = json.loads(ablate("report", "toy.py", "--json", cwd=searched).stdout)
    assert content["configurations"] == outcome(searched) | {"failed": 0}
    groups = {group["group"]: group for group in content["groups"]}
    assert set(groups) == {"topk", "bias_balanced"}
    assert sum(len(group["best"]) for group in groups.values()) == outcome(searched)["complete"]
    for group in groups.values():
        assert "biased" in group["best"][0]["note"] and group["best"]
        assert group["guided_by"] == "tpe" and group["expected_best"] == []  # its trials aren't random draws
        curve = [row["value"] for row in group["best_so_far"]]
        assert [row["n"] for row in group["best_so_far"]] == [1, 2, 4] and curve == sorted(curve, reverse=True)
    found = content["confirmation"]
    assert found["seeds"] == [1000, 1001, 1002, 1003] and found["missing"] == 0
    records = [json.loads(path.read_text()) for path in (searched / "runs" / "toy.confirm").rglob("record.json")]
    own = [r["metrics"]["val/nelbo"] for r in records if r["study"]["arm"] == "winner-topk"]
    row = next(row for row in found["arms"] if row["arm"] == "winner-topk")
    assert row["n"] == len(own) == 4 and row["estimate"] == pytest.approx(math.fsum(own) / 4)
    assert row["low"] < row["estimate"] < row["high"]
    assert row["selected"] == groups["topk"]["best"][0]["values"][0]
    shown = ablate("report", "toy.py", cwd=searched)
    assert "therefore biased" in shown.stdout and "confirmation on seeds 1000 to 1003" in shown.stdout
    assert (
        "no expected best: tpe proposes by what it has seen" in shown.stdout and "best of the first n" in shown.stdout
    )
    assert (searched / content["report"]).is_file()


def test_every_trained_run_has_a_record_that_says_it_is_a_trial(searched) -> None:
    records = [json.loads(path.read_text()) for path in (searched / "runs" / "toy").rglob("record.json")]
    assert len(records) == 8
    assert {record["study"]["search"]["group"] for record in records} == {"topk", "bias_balanced"}
    assert {record["status"] for record in records} == {"complete", "paused"}
    assert all(record["validation"]["step"][-1] in (2, 6, 18) for record in records)


def test_a_configuration_that_went_on_twice_equals_one_trained_at_one_go(searched, tmp_path) -> None:
    records = [json.loads(path.read_text()) for path in (searched / "runs" / "toy").rglob("record.json")]
    searched_run = next(record for record in records if record["status"] == "complete")
    whole = train(build(searched_run["config"]), tmp_path)
    assert whole.validation == searched_run["validation"] and whole.curve == searched_run["curve"]


def test_export_is_of_what_was_confirmed(searched, tmp_path) -> None:
    done = ablate("export", "toy.py", "--arm", "winner-topk", "--to", str(tmp_path / "e"), cwd=searched)
    assert done.returncode == 0, done.stderr
    evidence = json.loads((tmp_path / "e" / "evidence.json").read_text())
    assert evidence["evidence"]["confirmed"] and evidence["seeds"] == [1000, 1001, 1002, 1003]
    assert "kind: topk" in (tmp_path / "e" / "config.yaml").read_text()
    chosen = ablate("export", "toy.py", "--to", str(tmp_path / "w"), cwd=searched)
    assert chosen.returncode == 0 and "by the confirmation" in chosen.stdout, chosen.stderr
    mistake(ablate("export", "toy.py", "--arm", "c-1", cwd=searched), "was not confirmed", "winner-topk")


def test_nothing_unconfirmed_is_exported_unless_forced(searched, tmp_path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy").symlink_to(searched / "runs" / "toy")
    mistake(ablate("export", "toy.py", cwd=tmp_path), "isn't confirmed yet", "--force")
    forced = ablate("export", "toy.py", "--force", "--to", str(tmp_path / "e"), cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    assert "UNCONFIRMED" in (tmp_path / "e" / "CARD.md").read_text()
    assert not json.loads((tmp_path / "e" / "evidence.json").read_text())["evidence"]["confirmed"]
    assert "not confirmed" in ablate("report", "toy.py", cwd=tmp_path).stdout


def test_status_verify_retry_and_cancel_know_searches(searched) -> None:
    content = json.loads(ablate("status", "toy.py", "--json", cwd=searched).stdout)
    assert (
        content["over"] and not content["under_way"] and content["counts"]["finished"] == outcome(searched)["complete"]
    )
    assert content["confirmation"]["counts"]["finished"] == 12
    shown = ablate("status", "toy.py", "--watch", cwd=searched)  # it is over, so nothing is watched
    assert "toy: 8 configurations: {complete} finished, {paused} pruned".format(**outcome(searched)) in shown.stdout
    assert "toy.confirm: 12 runs: 12 finished" in shown.stdout
    done = ablate("verify", "toy.py", cwd=searched)
    settled = "toy: {complete} runs complete, {paused} paused, 0 failed, 0 missing: no problem found"
    assert settled.format(**outcome(searched)) in done.stdout, done.stdout
    assert "toy.confirm: 12 runs complete, 0 failed, 0 missing: no problem found" in done.stdout
    assert done.returncode == 0
    done = ablate("retry", "toy.py", cwd=searched)
    assert "toy: 0 failed and 0 lost configurations queued again" in done.stdout
    assert "toy.confirm: 0 failed and 0 lost, stopped or new runs queued; 0 wait" in done.stdout
    assert "0 sweeps on this machine asked to stop" in ablate("cancel", "toy.py", cwd=searched).stdout
    mistake(ablate("retry", "toy.py", "trainer.batch_size=8", cwd=searched), "was last run with another space")


@pytest.mark.slow
def test_a_search_in_another_process_is_followed_and_cancelled(tmp_path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION.replace('"trainer.steps": 18', '"trainer.steps": 900000'))
    command = ("ablations.__main__", "run", "toy.py", "--workers", "1")
    process = start(*command, cwd=tmp_path, log=tmp_path / "log", WANDB_MODE="disabled")

    def running() -> list[dict]:
        if not (tmp_path / "runs" / "toy" / "design.json").exists():
            return []
        rows = json.loads(ablate("status", "toy.py", "--json", cwd=tmp_path).stdout)["configurations"]
        return [row for row in rows if row["state"] == "running" and row["step"]]

    try:
        wait_until(running)
        [row] = running()
        assert row["where"] == socket.gethostname() and row["steps"] == row["until"] > row["step"] > 0
        shown = ablate("status", "toy.py", cwd=tmp_path).stdout
        assert "toy: 1 configuration: 1 running; 7 still to draw" in shown and "confirmation: once the search" in shown
        done = ablate("cancel", "toy.py", cwd=tmp_path)
        assert "1 sweep on this machine asked to stop" in done.stdout and "`ablate run toy.py` trains" in done.stdout
        assert process.wait() == 130 and "stopping the workers" in (tmp_path / "log").read_text()
    finally:
        process.kill()
    content = json.loads(ablate("status", "toy.py", "--json", cwd=tmp_path).stdout)
    assert content["counts"]["queued"] == 1 and content["tokens"] > 0
    assert len(list(tmp_path.rglob("latest.json"))) == 1  # from which it goes on


def test_following_a_sweep_needs_no_torch() -> None:
    code = "import sys, ablations.cli.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_changed_record_of_a_search_is_not_trusted(searched, tmp_path) -> None:
    shutil.copytree(searched, tmp_path / "copy")
    path = next(p for p in (tmp_path / "copy" / "runs" / "toy").rglob("record.json") if '"paused"' in p.read_text())
    path.write_text(path.read_text().replace('"wall_time_s":', '"wall_time_s":1'))
    done = ablate("verify", "toy.py", "--json", cwd=tmp_path / "copy")
    content = json.loads(done.stdout)
    assert done.returncode == 1 and not content["trusted"] and content["confirmation"]["trusted"]
    [finding] = content["findings"]
    assert finding["text"] == "its record was changed since the ledger was told of it"


def test_a_dry_run_for_slurm_prints_the_script_or_that_nothing_waits(searched, tmp_path) -> None:
    done = ablate("run", "toy.py", "--launcher", "slurm", "--dry-run", cwd=searched)
    assert done.returncode == 0 and "toy: no run waits for a worker; nothing is submitted" in done.stdout
    assert not (searched / "runs" / "toy" / "slurm").exists()
    (tmp_path / "toy.py").write_text(DECLARATION)
    done = ablate("run", "toy.py", "--launcher", "slurm", "--dry-run", "--array-parallelism", "3", cwd=tmp_path)
    assert done.returncode == 0 and "-P -m sweeps.launch.task" in done.stdout and "--array=0-2" in done.stdout
    assert "not submitted, and nothing is written: a search, 3 array tasks" in done.stderr
    mistake(ablate("run", "toy.py", "--dry-run", cwd=tmp_path), "--dry-run is an option of --launcher slurm")
    assert not (tmp_path / "runs").exists()


def test_export_at_full_scale_carries_what_the_search_decided(searched, tmp_path) -> None:
    where = ("--target", "llada_moe_7b_a1b", "--cluster", "64xH100-80G", "--to")
    done = ablate("export", "toy.py", *where, str(tmp_path / "w"), cwd=searched)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "w" / "evidence.json").read_text())
    carried = {entry["key"]: entry["proxy"] for entry in told["full_scale"]["carried"]}
    design = Study.load(searched / "runs" / "toy.confirm").design
    controls = design.by_name["control"].settings
    assert told["arm"]["name"] == told["evidence"]["winner"] == "winner-bias_balanced"
    assert carried and carried.items() <= told["arm"]["settings"].items()
    assert not any(controls.get(key) == value for key, value in carried.items())
    by_hand = ablate("export", "toy.py", *where, str(tmp_path / "h"), "--arm", "control", cwd=searched)
    assert "of an arm that was chosen by hand" in by_hand.stdout, by_hand.stderr


@pytest.fixture
def results(searched) -> Results:
    return Results.load(searched / "runs" / "toy")


@pytest.fixture
def study(searched, results) -> Study:
    """The confirmation."""
    return confirmed(results, searched / "runs" / "toy")


def shown(answer: SearchAnswer) -> str:
    """What the command prints."""
    out = io.StringIO()
    print_report(answer, Terminal(file=out, width=200))
    return out.getvalue()


def test_the_report_says_where_the_best_is_the_control(results, study) -> None:
    best = results.best("topk")
    changed = Results(replace(results.design, control=best.arm), results.configurations, ())
    answer = answer_of(changed, study)
    assert answer.content["confirmation"]["is_control"] == ["winner-topk"]
    assert [row["is_control"] for group in answer.content["groups"] for row in group["best"]].count(True) == 1
    said = shown(answer)
    assert "the control: learning_rate" in said and "winner-topk is the control itself" in said
    for once in ("therefore biased", "Which rate suits a toy?", "confirmation on seeds"):
        assert said.count(once) == 1


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_only_draws_that_look_at_nothing_have_an_expected_best(results, sampler) -> None:
    declared = results.design.declared | {"sampler": sampler}
    answer = answer_of(Results(replace(results.design, declared=declared), results.configurations, ()), None)
    step = results.design.rungs[0]
    for group, configurations in results.groups().items():
        content = next(each for each in answer.content["groups"] if each["group"] == group)
        drawn = [c.curve[step] for c in configurations if c.arm != results.design.control]  # the control was no draw
        assert content["guided_by"] is None
        assert content["expected_best"][0] == {"n": 1, "value": pytest.approx(np.mean(drawn))}
        assert content["expected_best"][-1] == {"n": len(drawn), "value": pytest.approx(min(drawn))}
    assert "expected best of n configurations" in shown(answer) and "no expected best" not in shown(answer)


def test_a_guided_searchs_history_is_shown_as_it_happened(results) -> None:
    step, (group, configurations) = results.design.rungs[0], next(iter(results.groups().items()))
    content = next(each for each in answer_of(results, None).content["groups"] if each["group"] == group)
    values = [c.curve[step] for c in sorted(configurations, key=lambda c: c.trial)]
    assert [row["value"] for row in content["best_so_far"]] == [
        min(values[: row["n"]]) for row in content["best_so_far"]
    ]


def test_intervals_of_a_confirmation_have_the_declared_level(results, study) -> None:
    lax = answer_of(results, replace(study, design=replace(study.design, alpha=0.2)))
    rows = [answer.content["confirmation"]["arms"][0] for answer in (answer_of(results, study), lax)]
    widths = [row["high"] - row["low"] for row in rows]
    assert widths[1] == pytest.approx(widths[0] * stats.t.ppf(0.9, 3) / stats.t.ppf(0.975, 3))
    assert "80 % interval" in shown(lax) and "95 % interval" not in shown(lax)


def test_the_report_tells_unequal_tuning_budgets(results) -> None:
    def unequal(configurations) -> str | None:
        return answer_of(Results(results.design, tuple(configurations), ()), None).content["unequal_budgets"]

    best = results.best("topk").trial
    said = unequal(c for c in results.configurations if c.group != "topk" or c.trial == best)
    assert said.startswith("unequal tuning budgets: ") and "topk 1 configuration and" in said
    for group in ("topk", "bias_balanced"):  # alone, there is nothing to be unfair to
        assert unequal(c for c in results.configurations if c.group == group) is None


def test_a_search_that_finds_nothing_better_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    job = {"plan": plan("toy", declare()).to_json(), "out": str(tmp_path), "lead_s": 1.0}
    job["trainer"] = "tests.sweeps.search.trainers:landscape"  # of which the control is the best
    begin(job, open_storage(default_url(tmp_path)), Workplace(), StopSignal((signal.SIGUSR1,)))
    results, folder = Results.load(tmp_path / "toy"), tmp_path / "toy"
    study = confirmed(results, folder)
    assert study.arms == ["control"] and study.missing == 0
    said = shown(answer_of(results, study))
    assert "winner is the control itself: nothing better was found" in said and "No verdict" not in said


def test_plan_says_what_is_searched_and_what_it_costs() -> None:
    content = json.loads(ablate("plan", "search_balance", "--size", "quick", "--no-calibration", "--json").stdout)
    assert content["groups"] == ["topk", "bias_balanced"] and content["rungs"] == [50, 150, 400]
    assert content["expected_tokens"] < content["most_tokens"] == 2 * 12 * 400 * 16 * 64
    assert 0 < content["feasible_share"] <= 1 and content["confirm"]["arms"] == 3
    shown = ablate("plan", "search_balance", "--size", "quick", "--no-calibration")
    assert shown.returncode == 0 and "budget: 12 configurations for each model.router.kind" in shown.stdout


def test_list_shows_searches() -> None:
    rows = {(row["name"], row["size"]): row for row in json.loads(ablate("list", "--json", "--out", "nowhere").stdout)}
    assert rows["search_balance", "full"]["budget"] == "48 configurations for each model.router.kind"
    assert "search, 12 configurations" in ablate("list", "--out", "nowhere").stdout


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"optimizer.learning_rate"', '"optimizer.learning_rat"', ("did you mean optimizer.learning_rate",)),
        ("confirm=4", "confirm=2", ("confirm: 2 fresh seeds cannot reach significance",)),
    ],
)
def test_a_mistake_is_one_line(old, new, expected, tmp_path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION.replace(old, new))
    mistake(ablate("run", "toy.py", cwd=tmp_path), *expected)


def test_the_report_of_a_search_is_one_page_that_says_what_it_compares(searched) -> None:
    done = ablate("report", "toy.py", cwd=searched)
    assert done.stderr == "" and "report: runs/toy/report.html" in done.stdout.splitlines()
    page = (searched / "runs" / "toy" / "report.html").read_text()
    assert all(f'<section id="{name}">' in page for name in ("confirmation", "history", "parallel", "best"))
    assert page.count("<svg") == 3 and "<script" not in page  # too few configurations for importances
    content = json.loads(ablate("report", "toy.py", "--json", cwd=searched).stdout)
    # How far each configuration of two workers came depends on which was measured first; the confirmed runs' tokens don't.
    assert not any("training tokens" in said for said in content["warnings"]) and len(content["trials"]) == 8
    labels = [row["label"] for row in content["confirmation"]["arms"]]
    assert all("kind" in label for label in labels)  # arms differ in it
    assert all("kind" not in row["label"] for group in content["groups"] for row in group["best"])  # a group doesn't
    label = content["confirmation"]["arms"][1]["label"]
    exported = ablate("export", "toy.py", "--arm", label, "--to", str(searched / "labelled"), cwd=searched)
    assert exported.returncode == 0, exported.stderr


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"control": 1000, "winner": 2000}, "unequal training tokens a run: control 1k, winner 2k"),
        ({"control": 1000, "winner": 1000, "winner-2": None}, None),
        ({"control": 1000}, None),
    ],
)
def test_arms_of_unlike_token_counts_are_flagged(tokens, said) -> None:
    found = _unequal_tokens([{"arm": arm, "tokens": count} for arm, count in tokens.items()])
    assert found is None if said is None else found.startswith(said)


def test_tokens_of_stages_before_a_run_are_its_own(study) -> None:
    [control, winner, *_] = study.arms
    started = {cell: replace(record, before={"tokens": 64.0}) for cell, record in study.cells.items()}
    mixed = {cell: started[cell] if cell[0] == winner else record for cell, record in study.cells.items()}
    found = replace(study, cells=mixed)
    assert _tokens_a_run(found, winner) == _tokens_a_run(study, winner) + 64
    assert _tokens_a_run(found, control) == _tokens_a_run(study, control)


def test_an_effect_below_the_margin_is_not_shown_as_the_margin(results, study, tmp_path) -> None:
    answer = answer_of(results, replace(study, design=replace(study.design, margin=0.01)))
    answer.content["confirmation"]["arms"][1]["effect"] = 0.00996
    write_search(answer, tmp_path / "page.html")
    assert "+0.00996" in shown(answer) and "+0.00996" in (tmp_path / "page.html").read_text()


def test_a_label_says_what_differs() -> None:
    one, other = {"a.rate": 0.1, "a.kind": "topk"}, {"a.rate": 0.1, "a.kind": "bias", "a.update": 0.5}
    assert differing([one, other]) == [{"a.kind": "topk"}, {"a.kind": "bias", "a.update": 0.5}]
    assert differing([one, one]) == [{}, {}]


def test_importances_print_nothing(capfd) -> None:
    search = Search("?", {"optimizer.learning_rate": Log(1e-4, 1e-1)}, sampler="random")
    rates = [1e-4 * 1.5**n for n in range(12)]
    points = [{"optimizer.learning_rate": rate} for rate in rates]
    (row,) = importances(search, points, rates, rng=np.random.default_rng(0), shuffles=5)
    assert 0 <= row.pvalue <= 1 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("guided", [False, True])
def test_the_page_of_a_search_has_every_figure(tmp_path, guided: bool) -> None:
    trials = [
        {
            "trial": n,
            "group": "",
            "status": "complete",
            "value": 5.0 - n,
            "settings": {"a.rate": 10.0**-n, "a.kind": "topk"},
        }
        for n in range(4)
    ]
    trials.append({"trial": 4, "group": "", "status": "failed", "settings": {"a.rate": 0.0}, "value": None})
    best = {"trial": 3, "values": [2.0], "label": "<b>rate</b> 0.001", "is_control": False}
    tested = {"null": None, "pvalue": None} if guided else {"null": 0.1, "pvalue": 0.01}
    group = {
        "group": "", "best": [best], "pareto": [], "judged_at_step": 4, "guided_by": "tpe" if guided else None,
        "best_so_far": [], "expected_best": [], "importance": [{"parameter": "a.rate", "importance": 0.4, **tested}],
    }  # fmt: skip
    content = {
        "search": "toy", "question": "Which?", "metrics": ["val/nelbo"], "goals": ["min"], "trials": trials, "tokens": 1e6,
        "configurations": {"complete": 4, "paused": 0, "failed": 1}, "failures": [{"trial": 4, "reason": "NaN"}],
        "groups": [group], "confirmation": None, "notes": [], "warnings": ["unequal <1>"],
    }  # fmt: skip
    pages = []
    for _ in range(2):
        write_search(SearchAnswer(content, None), tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
    assert pages[0] == pages[1]  # equal records give equal bytes
    assert pages[0].count("<svg") == 3 and "Not confirmed yet" in pages[0] and "unequal &lt;1&gt;" in pages[0]
    assert ("of shuffled values" in pages[0]) is not guided
    assert "&lt;b&gt;rate" in pages[0] and "trial 4 failed: NaN" in pages[0]
