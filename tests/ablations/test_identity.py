"""Identity of a folder of runs: edited, renamed and doubled declarations, changed code, results that were shown.

Records are written by a stand-in, as plans have them; the commands are the product's own.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.__main__ import parse
from ablations.cli import studies
from ablations.cli.kinds.search.drift import drift
from ablations.cli.plan import make_plan
from core.records import run_record, study_history
from core.records.study_history import Look
from sweeps.runs.folders import run_folder, write_design
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import confirmation_plan, fresh_seeds
from tests.ablations.shell import ablate, mistake
from tests.sweeps import trainers
from tests.sweeps.conftest import SMALL

DECLARATION = f"""
from sweeps.spec import Ablation, Factor

ablation = Ablation(
    question="Does the loss matter?",
    factors=(Factor("objective.load_balancing_weight", (0.0, 0.01)),),
    control={{"objective.load_balancing_weight": 0.01}},
    base="tiny", margin=0.5, seeds=range(6),
    settings={SMALL!r},
)
"""
CODE = {"git_commit": "a" * 40, "git_dirty": False, "git_diff_sha256": None, "source_sha256": "1" * 64}


def declare(path: Path, *changes: tuple[str, str]) -> Path:
    text = DECLARATION
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def record(folder: Path, *arguments: str, code=lambda run: CODE) -> Plan:
    """What `ablate run` leaves, without training: a design and a record of each run that there is none of."""
    plan = make_plan(parse(["run", *arguments, "--out", str(folder / "runs")]))
    write_design(folder / "runs" / plan.study_name, plan.design)
    for run in plan.runs:
        place = run_folder(plan, run, folder / "runs")
        if not (place / run_record.FILE_NAME).exists():
            place.mkdir(parents=True)
            made = trainers.noisy(run.config, place, study=plan.study_field(run))
            at = f"2026-01-0{1 + run.seed}T00:00:00+00:00"
            trainers.overwrite(replace(made, provenance=code(run), started_at=at, finished_at=at), place)
    return plan


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The declaration, in the folder where commands are typed."""
    monkeypatch.chdir(tmp_path)
    return declare(tmp_path / "toy.py")


def found(*arguments: str) -> dict:
    done = ablate(*arguments, "--json", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    content: dict = json.loads(done.stdout)
    return content


def printed(*arguments: str, status: int = 0) -> str:
    done = ablate(*arguments, cwd=Path.cwd())
    assert done.returncode == status, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_a_study_of_one_version_says_when_it_was_declared_and_nothing_more(toy: Path) -> None:
    record(toy.parent, "toy.py")
    report = found("report", "toy.py")
    assert report["notes"] == [] and report["declared"].startswith("Declared on 20")
    assert "changed since" not in report["declared"] and "Seeds were added" not in report["headline"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("range(6)", "range(8)")], "seeds 0–5 → 0–7: `ablate run toy.py --out"),
        ([("(0.0, 0.01)", "(0.0, 0.01, 0.1)")], "arms added: load_balancing_weight=0.1: "),
        ([("'trainer.steps': 30", "'trainer.steps': 40")], "trainer.steps 30 → 40: "),
        ([("margin=0.5", "margin=0.1, alpha=0.01")], "margin 0.5 → 0.1; alpha 0.05 → 0.01: "),
        ([('base="tiny",', 'base="tiny", metric="val/cross_entropy",')], "metric val/nelbo → val/cross_entropy"),
    ],
)
def test_a_declaration_that_was_edited_is_told_by_every_command_that_reads_its_runs(toy: Path, changes, said) -> None:
    record(toy.parent, "toy.py")
    if "cross_entropy" in said:
        changes = [('base="tiny",', 'base="tiny", secondary=("load/max_vio",),')]
        said = "secondary none → load/max_vio"
    declare(toy, *changes)
    report = found("report", "toy.py")
    assert said in report["notes"][-1], report["notes"]
    assert said in printed("report", "toy.py")
    assert said.split(":")[0] in Path("runs/toy/report.html").read_text()
    verified = json.loads(ablate("verify", "toy.py", "--json", cwd=toy.parent).stdout)
    assert any(said in finding["text"] and finding["note"] for finding in verified["findings"])
    assert said in printed("sync", "toy.py")
    assert said in printed("export", "toy.py", "--arm", "load_balancing_weight=0")
    assert said.split(" (")[0] in Path("runs/toy/export/CARD.md").read_text()


@pytest.mark.parametrize(
    ("change", "said", "does"),
    [
        (("Does the loss", "Will the loss"), "the question: `ablate run toy.py", "` takes this over."),
        (
            ("0.01)),)", '0.01), label="LB"),)'),
            "label of objective.load_balancing_weight load_balancing_weight → LB",
            "over.",
        ),
        (("range(6)", "range(5)"), "seeds 0–5 → 0–4: `ablate run toy.py", "` takes this over."),
        (('weight": 0.01}', 'weight": 0.0}'), "=0: `ablate run toy.py", "` takes this over."),
        (("range(6)", "range(1, 7)"), "seeds 0–5 → 1–6: `ablate run toy.py", "` trains what is new."),
    ],
)
def test_an_edit_that_needs_no_run_is_not_said_to_train(toy: Path, change, said: str, does: str) -> None:
    record(toy.parent, "toy.py")
    declare(toy, change)
    note = found("report", "toy.py")["notes"][-1]
    assert said in note and note.endswith(does)


def test_a_file_that_was_moved_and_edited_is_told_what_to_do(toy: Path) -> None:
    record(toy.parent, "toy.py")
    moved = declare(toy.parent / "sub" / "toy.py", ("Does the loss", "Will the loss"))
    toy.unlink()
    said = ("toy.py, which is gone, and of another question ('Does the loss matter?')", str(moved), "--out")
    mistake(ablate("report", "sub/toy.py", cwd=toy.parent), *said)


def test_what_the_command_line_said_is_no_edit(toy: Path) -> None:
    record(toy.parent, "toy.py", "--seeds", "8", "trainer.steps=40")
    assert found("report", "toy.py")["notes"] == []
    declare(toy, ("margin=0.5", "margin=0.1"))
    assert "`ablate run toy.py trainer.steps=40 --seeds 8 --out" in found("report", "toy.py")["notes"][0]


def test_two_declarations_of_one_name_do_not_share_a_folder(toy: Path) -> None:
    one, two = toy.parent / "a" / "lr.py", toy.parent / "b" / "lr.py"
    declare(one)
    declare(two, ("(0.0, 0.01)", "(0.1, 0.01)"))
    record(toy.parent, "a/lr.py")
    for command in (["report"], ["run"], ["status"], ["plan"], ["confirm"], ["export"], ["verify"], ["sync"]):
        mistake(ablate(*command, "b/lr.py", cwd=toy.parent), f"holds the runs of {one}", f"than {two}", "--out")
    assert found("report", "a/lr.py")["counts"]["complete"] == 12
    two.write_text(one.read_text())  # a copy is the same declaration
    assert found("report", "b/lr.py")["counts"]["complete"] == 12


def test_a_dotted_name_does_not_meet_another_declarations_size(toy: Path) -> None:
    declare(
        toy, ("base=", 'sizes={"smoke": Size(seeds=range(5))}, base='), ("Ablation, Factor", "Ablation, Factor, Size")
    )
    declare(toy.parent / "toy.smoke.py", ("range(6)", "range(7)"))
    record(toy.parent, "toy.py", "--size", "smoke")
    mistake(ablate("report", "toy.smoke.py", cwd=toy.parent), "another declaration of the same name")


def test_a_renamed_declaration_is_told_where_its_runs_lie_and_takes_them_over(toy: Path) -> None:
    record(toy.parent, "toy.py")
    toy.rename(toy.parent / "better.py")
    for command in ("report", "status"):
        done = ablate(command, "better.py", cwd=toy.parent)
        mistake(done, "runs of this question lie in runs/toy", "`mv runs/toy runs/better`", "`ablate run better.py`")
    assert "`mv runs/toy runs/better`" in printed("plan", "better.py", "--no-calibration")
    Path("runs/toy").rename("runs/better")
    assert "0 runs trained, 12 recorded before" in printed("run", "better.py")
    assert found("report", "better.py")["notes"] == []
    assert found("verify", "better.py")["complete"] == 12


def test_runs_of_two_versions_of_the_code_are_told_apart(toy: Path) -> None:
    other = CODE | {"source_sha256": "2" * 64, "git_commit": "b" * 40}
    record(toy.parent, "toy.py", code=lambda run: other if run.seed > 3 else CODE)
    said = "Runs of 2 versions of the code are compared: 8 by source 111111111111 ("
    report = found("report", "toy.py")
    assert said in report["notes"][0] and "4 by source 222222222222" in report["notes"][0]
    assert "seeds 4–5" in report["notes"][0] and "--out ANOTHER" in report["notes"][0]
    assert said in printed("report", "toy.py") and said in Path("runs/toy/report.html").read_text()
    assert said in printed("run", "toy.py")
    printed("export", "toy.py", "--arm", "load_balancing_weight=0")
    assert "Runs of 2 versions" in Path("runs/toy/export/CARD.md").read_text()
    assert "Runs of 2 versions" in json.loads(Path("runs/toy/export/evidence.json").read_text())["evidence"]["notes"][0]


@pytest.mark.parametrize(
    ("older", "said"),
    [
        ({}, "6 by a version that isn't known"),
        ({"git_commit": "a" * 40, "git_dirty": False}, None),  # the commit that the others' source is known by
        (
            {"git_commit": "a" * 40, "git_dirty": True, "git_diff_sha256": "c" * 64},
            "6 by commit aaaaaaaaaaaa with changes",
        ),
        ({"git_commit": "a" * 40, "git_dirty": True}, "6 by a version that isn't known"),
    ],
)
def test_older_records_are_of_the_version_that_their_commit_shows_or_of_none(toy: Path, older: dict, said) -> None:
    record(toy.parent, "toy.py", code=lambda run: older if run.seed < 3 else CODE)
    notes = found("report", "toy.py")["notes"]
    assert (said in notes[0]) if said else notes == []


def test_a_primary_metric_or_margin_changed_after_training_is_told(toy: Path) -> None:
    record(toy.parent, "toy.py")
    declare(toy, ("margin=0.5", "margin=0.01, alpha=0.1"))
    assert "the design was changed since it was last run: margin 0.5 → 0.01; alpha 0.05 → 0.1" in printed(
        "run", "toy.py"
    )
    report = found("report", "toy.py")
    assert "margin from 0.5 to 0.01 after 12 runs" in report["notes"][0]
    assert "after 12 runs: margin 0.5 → 0.01; alpha 0.05 → 0.1" in report["declared"]
    declare(toy)  # and back again: what was tried stays
    printed("run", "toy.py")
    assert "margin from 0.01 to 0.5 after 12 runs" in found("report", "toy.py")["notes"][0]


def test_seeds_added_after_looks_say_so_and_at_which_level_p_values_hold(toy: Path) -> None:
    record(toy.parent, "toy.py")
    ablate("report", "toy.py", cwd=toy.parent)
    record(toy.parent, "toy.py", "--seeds", "7")
    ablate("list", cwd=toy.parent)
    ablate("report", "toy.py", cwd=toy.parent)
    record(toy.parent, "toy.py", "--seeds", "8")
    said = "Seeds were added: 6 were planned first, then 7, then 8, and results were shown 2 times before that."
    headline = found("report", "toy.py")["headline"]
    assert said in headline and "only p-values below alpha / 3 = 0.0167 hold whatever was seen" in headline
    assert said in printed("report", "toy.py") and said in Path("runs/toy/report.html").read_text()


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [("6", "7", "If the first were looked at"), ("8", "6", "Fewer seeds are judged than were planned before (8)")],
)
def test_seeds_added_or_taken_away_without_a_look_are_told(toy: Path, first: str, then: str, said: str) -> None:
    for seeds in (first, then):
        record(toy.parent, "toy.py", "--seeds", seeds)
    assert said in found("report", "toy.py")["headline"]


def test_a_search_that_was_edited_is_told_too(toy: Path) -> None:
    path = toy.parent / "rates.py"
    text = """
from sweeps.spec import Budget, Log, Search
from tests.sweeps.conftest import SMALL

search = Search(
    question="Which rate?", space={"optimizer.learning_rate": Log(1e-4, 1e-2)}, base="tiny", settings=SMALL, seeds=(0,),
    budget=Budget(trials=4), confirm=4,
)
"""
    path.write_text(text)
    arguments = parse(["report", "rates.py"])
    planned = studies.make_plan(parse(["run", "rates.py", "--exploratory"]))
    write_design(Path("runs/rates"), planned.design)
    assert drift(arguments, "full") == ""
    path.write_text(text.replace("trials=4", "trials=8").replace("1e-2", "1e-1"))
    said = drift(arguments, "full")
    assert "space, budget: `ablate run rates.py --exploratory` goes by what it is now" in said
    assert [event.recorded for event in study_history.read(Path("runs/rates"))] == [0]


def test_verify_looks_at_the_first_of_several_sizes(toy: Path) -> None:
    sizes = 'sizes={"one": Size(seeds=range(5)), "two": Size(seeds=range(4))}, base='
    declare(toy, ("base=", sizes), ("Ablation, Factor", "Ablation, Factor, Size"))
    for size in ("one", "two"):
        record(toy.parent, "toy.py", "--size", size)
    assert json.loads(ablate("verify", "toy.py", "--json", cwd=toy.parent).stdout)["complete"] == 10
    mistake(ablate("report", "toy.py", cwd=toy.parent), "was run in several sizes")


def test_a_look_that_cannot_be_noted_is_said_and_shown_all_the_same(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(toy.parent, "toy.py")

    def refused(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sweeps.runs.history._append", refused)
    text = printed("report", "toy.py")
    assert "Does the loss matter?" in text and "can't be noted in runs/toy: Permission denied" in text


def test_a_look_before_until_decided_is_on_the_page(toy: Path) -> None:
    record(toy.parent, "toy.py")
    ablate("report", "toy.py", cwd=toy.parent)
    printed("run", "toy.py", "--until-decided")
    headline = found("report", "toy.py")["headline"]
    assert "Results were shown 1 time before these seeds were bought until decided" in headline
    assert "alpha / 2 = 0.025" in headline


def test_a_second_confirmation_says_that_it_is_one(toy: Path) -> None:
    declare(toy, ("0.01", "0.3"), ("margin=0.5, ", ""))
    plan = record(toy.parent, "toy.py")
    winner = found("report", "toy.py")["winner"]
    assert winner is not None and winner != plan.design.control
    folder = Path("runs/toy.full.confirm")
    _, ablation = studies.resolve("toy.py")
    for count in (4, 6):
        seeds = fresh_seeds(plan.design, count)
        confirming = confirmation_plan("toy", ablation, plan.design, winner, seeds, "ablate confirm")
        for run in confirming.runs:
            place = run_folder(confirming, run, Path("runs"))
            if not (place / run_record.FILE_NAME).exists():
                made = trainers.record_of(run.config, confirming.study_field(run))
                value = 2.0 + (run.arm == winner) * (0.1 if run.seed < 1004 else -9) + 0.01 * (run.seed % 3)
                run_record.write(replace(made, metrics={"val/nelbo": value}, provenance=CODE), place)
        text = printed("confirm", "toy.py", "--seeds", str(count))
        assert ("This is confirmation 2; tried before: " in text) == (count == 6)
    assert f"{winner} on seeds 1000–1003 (not confirmed). Beside alpha / 2 = 0.025" in text
    assert sum(isinstance(event, Look) for event in study_history.read(folder)) == 2


def test_a_history_that_is_damaged_is_said_and_left_alone(toy: Path) -> None:
    record(toy.parent, "toy.py")
    path = Path("runs/toy/history.jsonl")
    path.write_text('{"half')
    assert "history.jsonl is damaged" in found("report", "toy.py")["notes"][0]
    assert path.read_text() == '{"half'


def test_a_folder_of_an_older_version_tells_of_designs_by_its_records(toy: Path) -> None:
    record(toy.parent, "toy.py")
    declare(toy, ("margin=0.5", "margin=0.4"))
    record(toy.parent, "toy.py", "--seeds", "7")
    Path("runs/toy/history.jsonl").unlink()
    for path in Path("runs/toy").rglob("record.json"):  # as if declared_in had not been known
        old = run_record.read(path)
        design = {key: value for key, value in old.study["design"].items() if key != "declared_in"}
        trainers.overwrite(replace(old, study=old.study | {"design": design}), path.parent)
    report = found("report", "toy.py")
    assert "Declared on 2026-01-01 00:00 at commit aaaaaaaaaaaa; changed since: on 2026-01-07" in report["declared"]
    assert "margin from 0.5 to 0.4 after 12 runs" in report["notes"][0]


def test_a_renamed_file_and_a_confirmation_that_was_not_run_are_told_by_verify_and_report(toy: Path) -> None:
    record(toy.parent, "toy.py")
    mistake(ablate("report", "toy.py", "--size", "full.confirm", cwd=toy.parent), "run it with ablate confirm toy.py")
    toy.rename(toy.parent / "new.py")
    done = ablate("verify", "new.py", cwd=toy.parent)
    mistake(done, "runs of this question lie in runs/toy", "`mv runs/toy runs/new`")
