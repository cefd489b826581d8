"""`ablate run --until-decided`: what is bought and what is said, with trainers whose results are known."""

import functools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from ablations.cli import run as run_command
from analysis.study import Study
from analysis.verdicts.until_decided import Rule, sequential_run
from core.records.designs import Design
from core.records.interim_analyses import add, add_retry
from sweeps.launch import local
from sweeps.launch.local import run
from tests.ablations.shell import ablate, mistake
from tests.analysis.conftest import make_design, make_record

DECLARATION = '''
"""A question whose answer is known: a trainer adds the square of the weight."""
from sweeps.spec import Ablation, Factor

ablation = Ablation(
    question="Does the weight matter?",
    factors=(Factor("objective.load_balancing_weight", (0.0, 0.5, 0.01)),),
    control={"objective.load_balancing_weight": 0.0},
    base="tiny",
    margin=0.01,
    seeds=range(12),
    settings={"data.corpus": "markov", "data.validation_sequences": 16},
)
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(local, "run", functools.partial(run, trainer="tests.sweeps.trainers:noisy"))
    (tmp_path / "weights.py").write_text(DECLARATION)
    return tmp_path


def decided(place, *more: str):
    return ablate("run", "weights.py", "--until-decided", "--workers", "1", *more, cwd=place)


def test_a_sweep_buys_until_it_is_decided_and_its_trail_can_be_checked(place) -> None:
    done = decided(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next block: 12 runs of 3 arms, to 4 seeds" in done.stderr
    assert "load_balancing_weight 0.5 − load_balancing_weight 0: different" in done.stderr
    records = list(place.rglob("record.json"))
    assert f"Bought until decided: {len(records)} runs beside the fixed design's 36" in done.stdout
    content = json.loads(ablate("report", "weights.py", "--json", cwd=place).stdout)
    rows = {row["arm"].split("=")[-1]: row["verdict"] for row in content["tables"][0]["rows"]}
    assert rows == {"0": "control", "0.5": "worse", "0.01": "equivalent within the margin"}
    assert content["counts"]["missing"] == 0 and content["course"]["wanted"] == []
    assert len(records) == sum(content["course"]["seeds"].values()) < 36
    noted = [json.loads(line) for line in (place / "runs" / "weights" / "looks.jsonl").read_text().splitlines()]
    assert [look["seeds"] for look in noted] == [look["seeds"] for look in content["course"]["looks"]]
    assert json.loads(ablate("status", "weights.py", "--json", cwd=place).stdout)["counts"]["finished"] == len(records)
    before = {path: path.read_bytes() for path in records}
    assert decided(place).returncode == 0  # again: nothing is bought, and no look is noted twice
    assert {path: path.read_bytes() for path in place.rglob("record.json")} == before
    assert len((place / "runs" / "weights" / "looks.jsonl").read_text().splitlines()) == len(noted)
    assert ablate("verify", "weights.py", cwd=place).returncode == 0
    mistake(ablate("run", "weights.py", "--seeds", "4", cwd=place), "looked at after", "go on with --until-decided")
    mistake(decided(place, "--block", "3"), "looked at by another rule")
    mistake(decided(place, "--seeds", "20"), "use --seeds 12")
    again = ablate("retry", "weights.py", cwd=place)  # what it never bought isn't lost
    assert again.returncode == 0 and "0 failed and 0 lost, stopped or new runs queued; 0 wait" in again.stdout
    table = ablate("report", "weights.py", "--files", "out", cwd=place)
    assert table.returncode == 0 and "equivalent" in (place / "out" / "looks.csv").read_text()


def test_a_trail_that_the_records_contradict_is_found(place) -> None:
    assert decided(place).returncode == 0
    path = place / "runs" / "weights" / "looks.jsonl"
    path.write_text(path.read_text().replace('"different"', '"futile"'))
    done = ablate("verify", "weights.py", cwd=place)
    assert done.returncode == 1 and "decided otherwise than the records say now" in done.stdout
    path.write_text("{")
    assert "looks.jsonl is damaged" in ablate("verify", "weights.py", cwd=place).stdout
    mistake(decided(place), "looks.jsonl is damaged")


def test_failed_runs_cost_pairs_and_are_tried_again_on_request(place, monkeypatch) -> None:
    monkeypatch.setenv("FAILS", "1")
    done = decided(place)
    assert done.returncode == 1 and "1 run failed" in done.stdout
    monkeypatch.delenv("FAILS")
    done = decided(place, "--retry-failed")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(ablate("report", "weights.py", "--json", cwd=place).stdout)
    assert content["counts"]["failed"] == 0
    path = place / "runs" / "weights" / "looks.jsonl"
    looks = [json.loads(line) for line in path.read_text().splitlines()]
    [again] = [entry for entry in looks if "retried" in entry]
    assert len(again["retried"]) == 1 and again["seeds"] == max(look["seeds"] for look in looks)
    noted = {look["seeds"]: look["decisions"] for look in looks if "retried" not in look}
    seen = {
        look["seeds"]: {step["label"]: step["decision"] for step in look["steps"]}
        for look in content["course"]["looks"]
    }
    assert seen == noted and len(looks) == len(noted) + 1  # each look was taken once, and stays as it was
    assert ablate("verify", "weights.py", cwd=place).returncode == 0
    before = looks[0] | {
        "decisions": dict.fromkeys(looks[0]["decisions"], "lost")
    }  # as if nothing had finished at first
    other = before | {"design": "of other arms"}
    path.write_text("".join(json.dumps(look) + "\n" for look in (before, *looks, other)))
    checked = ablate("verify", "weights.py", cwd=place)
    assert checked.returncode == 0 and checked.stdout.count("decided otherwise") == 1


def test_all_the_planned_seeds_are_a_fixed_design_and_records_before_the_first_look_are_told(place) -> None:
    assert decided(place).returncode == 0
    assert ablate("run", "weights.py", "--workers", "1", cwd=place).returncode == 0
    assert json.loads(ablate("report", "weights.py", "--json", cwd=place).stdout)["counts"]["complete"] == 36
    done = ablate("verify", "weights.py", cwd=place)
    assert done.returncode == 0 and "note: looks.jsonl: the results were looked at" in done.stdout
    (place / "runs" / "weights" / "looks.jsonl").unlink()
    said = decided(place).stderr
    assert "note: 36 runs were recorded and shown (ablate report, " in said and "which p-values hold" in said
    (place / "runs" / "weights" / "looks.jsonl").unlink()
    (place / "runs" / "weights" / "history.jsonl").unlink()  # as a version that kept none left it
    assert "note: 36 runs were recorded before any look was noted" in decided(place).stderr


def test_mistakes(place) -> None:
    mistake(ablate("run", "weights.py", "--block", "3", cwd=place), "--block is an option of --until-decided")
    mistake(ablate("run", "search_balance", "--until-decided", cwd=place), "--until-decided is for ablations")
    ladder = ("run", "scaling", "--size", "quick", "--until-decided")
    mistake(ablate(*ladder, cwd=place), "scaling is a ladder, to which a law is fitted")


def test_a_retry_of_a_sweep_that_was_looked_at_is_noted_before_it_is_queued(place, monkeypatch) -> None:
    monkeypatch.setenv("FAILS", "1")
    assert decided(place).returncode == 1
    monkeypatch.delenv("FAILS")
    done = ablate("retry", "weights.py", cwd=place)
    assert done.returncode == 0 and "1 failed and 0 lost" in done.stdout
    trail = [json.loads(line) for line in (place / "runs" / "weights" / "looks.jsonl").read_text().splitlines()]
    design = json.loads((place / "runs" / "weights" / "design.json").read_text())
    assert trail[-1]["retried"] == design["adaptive"]["retried"][0][1] and len(trail[-1]["retried"]) == 1
    assert decided(place).returncode == 0
    assert ablate("verify", "weights.py", cwd=place).returncode == 0


def test_a_run_that_fails_again_and_is_looked_at_without_its_pair_is_noted_again(tmp_path) -> None:
    rule, content = replace(Rule.of(8), futile=0.0), make_design(arms=2, seeds=8, margin=None)
    design = Design.from_json(content)
    cell = ("arm1", 1)
    assert add_retry(tmp_path, design, [cell]) == [] and not list(tmp_path.iterdir())  # nothing was looked at
    add(tmp_path, design, asdict(rule), {"seeds": 4, "decisions": {}, "steps": []})
    assert add_retry(tmp_path, design, [cell]) == [(4, [cell])]
    assert add_retry(tmp_path, design, [cell]) == [(4, [cell])]  # it was stopped before it trained: no second note
    add(tmp_path, design, asdict(rule), {"seeds": 6, "decisions": {}, "steps": []})
    found = add_retry(tmp_path, design, [cell])
    assert found == [(4, [cell]), (6, [cell])]  # the look after 6 seeds went without its pair, and stays so
    whole = [make_record(content, arm, seed, 0.0, 0.04) for seed in range(8) for arm in ("control", "arm1")]
    seen = sequential_run(Study.of(whole, rule.designed(design, {}, found)))
    assert [look.steps[0].n for look in seen.looks] == [3, 5, 8]


@pytest.mark.parametrize(("second", "told"), [("PENDING", ["PENDING"]), ("RUNNING", ["PENDING", "RUNNING"])])
def test_the_time_that_tasks_have_left_is_no_change(tmp_path, monkeypatch, capsys, second, told) -> None:
    def polled(state: str, left: float) -> SimpleNamespace:
        task = SimpleNamespace(state=state, reason="", seconds_left=left)
        return SimpleNamespace(is_under_way=True, tasks=(task,), silence=None)

    polls = iter(
        [polled("PENDING", 300), polled(second, 290), polled(second, 280), SimpleNamespace(is_under_way=False)]
    )
    monkeypatch.setattr(run_command, "status", lambda *where, **asked: next(polls))
    monkeypatch.setattr(run_command, "tasks_said", lambda now: [now.tasks[0].state])
    monkeypatch.setattr(run_command, "POLL_S", 0.0)
    run_command._wait("study", tmp_path, "url")
    assert capsys.readouterr().err.split() == told
