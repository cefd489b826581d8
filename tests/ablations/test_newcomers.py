"""A newcomer's first study, on tiny runs: mistakes, narrow terminals, lost records."""

import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ablations.__main__ import parse
from ablations.cli import studies
from ablations.cli.describe import _print as print_shapes
from ablations.cli.plan import describe_plan, make_plan, print_plan
from analysis.report.terminal import terminal_table
from analysis.study import Study
from analysis.verdicts.judge import judge
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from sweeps.runs.ledger import Ledger
from sweeps.storage.storage import choose_url, open_storage
from tests.ablations.shell import ablate, mistake

DECLARATION = '''
from sweeps.spec import Ablation, Factor
ablation = Ablation(
    question="Does the weight matter?",
    factors=(Factor("objective.load_balancing_weight", (0.0, 0.01), label="load balancing"),),
    control={"objective.load_balancing_weight": 0.01},
    base="tiny", seeds=range(4), margin=0.01, secondary=("load/max_vio",),
    settings={
        "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 16, "model.hidden_size": 16,
        "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 4, "model.expert_width": 8, "trainer.steps": 6,
        "trainer.batch_size": 4, "trainer.validate_every": 3, "trainer.log_every": 3,
    },
)
'''  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the study declared, and all but one of its runs trained: another process has that one."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.py").write_text(DECLARATION)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        planned, out = make_plan(parse(["run", "toy.py"])), folder / "runs"
        ledger = Ledger(planned, out, open_storage(choose_url(None, out, out / "toy")))
        ledger.reconcile()
        claim, _ = ledger.claim()
        assert claim is not None
        done = ablate("run", "toy.py", "--workers", "2", cwd=folder)
        claim.lock.release()
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "toy: 7 runs trained, 0 recorded before, 0 failed, 0 missing" in text, text
    assert "1 run in training by another process, which records them: ablate status toy.py follows it" in text
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "study")
    return tmp_path / "study"


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d(?:[\d,.]*\d)?(?:e[+-−]?\d+)?", text))


def shown(width: int, show) -> str:
    out = Terminal(file=io.StringIO(), width=width)
    show(out)
    return out.file.getvalue()


def test_no_width_of_a_terminal_cuts_a_number(trained, monkeypatch) -> None:
    monkeypatch.chdir(trained)
    judgement = judge(Study.load(trained / "runs" / "toy"))
    content = describe_plan(parse(["plan", "toy.py", "--no-calibration"]))
    described = json.loads(ablate("describe", "llada_moe_7b_a1b", "--json").stdout)
    tables = {
        "report": lambda out: out.print(terminal_table(judgement)),
        "plan": lambda out: print_plan(content, out),
        "describe": lambda out: print_shapes(described, out),
    }
    for name, show in tables.items():
        wide = numbers(shown(200, show))
        assert len(wide) > 10
        for width in range(40, 200, 3):
            text = shown(width, show)
            assert not wide - numbers(text), (name, width)
            lines = [line for line in text.splitlines() if not line.startswith("data.corpus=")]  # left to the terminal
            assert max(map(len, lines)) <= max(width, 60), (name, width)


def test_cells_that_do_not_fit_are_below_one_another_with_their_names() -> None:
    table = labelled("arm", "parameters", "95 % interval", "verdict", folded=("verdict",))
    table.add("a", "1,234,567,890", "−0.0073 +0.0112", "no detectable difference at this resolution")
    lines = shown(40, lambda out: out.print(table)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "a", "  parameters: 1,234,567,890", "  95 % interval: −0.0073 +0.0112",
        "  verdict: no detectable difference at", "this resolution",
    ]  # fmt: skip


def test_a_word_that_is_longer_than_the_line_is_whole() -> None:
    path = "runs/" + "x" * 60 + "/0.00012345.html"
    assert path in shown(40, lambda out: out.print(f"report: {path} of 12 runs")).splitlines()


def test_a_deleted_record_is_missing_and_named(folder) -> None:
    gone = next((folder / "runs" / "toy").rglob("record.json"))
    gone.unlink()
    found = json.loads(ablate("status", "toy.py", "--json", cwd=folder).stdout)
    assert found["counts"]["finished"] == 6 and found["counts"]["missing"] == 1
    (row,) = [run for run in found["runs"] if run["state"] == "missing"]
    assert "record is gone" in row["reason"] and f"seed-{row['seed']}-" in str(gone)
    text = " ".join(ablate("status", "toy.py", cwd=folder).stdout.split())
    assert "6 finished" in text and f"missing: {row['arm']} seed {row['seed']}: its record is gone" in text


@pytest.mark.parametrize("said", ["load balancing 0", "load_balancing_weight=0", "“load balancing 0”"])
def test_an_arm_is_named_as_tables_print_it(folder, said: str) -> None:
    done = ablate("export", "toy.py", "--arm", said, "--force", cwd=folder)
    assert done.returncode == 0 and "load_balancing_weight: 0.0" in (folder / "runs/toy/export/config.yaml").read_text()
    control = ablate("export", "toy.py", "--arm", "load balancing 0.01 (control)", "--force", cwd=folder)
    assert control.returncode == 0, control.stderr
    mistake(ablate("export", "toy.py", "--arm", "load balancing 0.1", "--force", cwd=folder), "is not an arm of toy.py")


def test_a_name_that_is_a_file_or_folder_here_is_said(tmp_path) -> None:
    (tmp_path / "lr.py").write_text(DECLARATION)
    (tmp_path / "runs" / "lr").mkdir(parents=True)
    (tmp_path / "notes").touch()
    mistake(ablate("report", "lr", cwd=tmp_path), "a file lr.py is here: write lr.py")
    mistake(ablate("report", "runs/lr", cwd=tmp_path), "runs/lr is a folder here, and no declaration")
    mistake(ablate("status", "notes", cwd=tmp_path), "notes is a file here, and no declaration")
    assert studies.declared("balance")[0] == "balance"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((',\n    control', ',\n    contrl'), ("toy.py can't be read, line 3", "'contrl'", "did you mean control or ")),
        (("label=", "lable="), ("unexpected keyword argument 'lable'", "did you mean label?")),
        (("margin=0.01", 'margin="0.01"'), ("toy.py, line 3: margin: must be a number or None, not the text '0.01'",)),
        (('label="load balancing"),)', 'label="load balancing"))'), ("factors: a tuple of one needs its comma",)),
        (("(0.0, 0.01)", '("0.0", "0.01")'), ("factors: 'objective.load_balancing_weight' takes numbers",)),
        (("objective.load_balancing_weight", "objective.load_balancing"), ("did you mean objective.load_balancing_weight",)),
        (('"model.hidden_size"', '"model.hiden_size"'), ("unknown config key 'model.hiden_size'", "model.hidden_size")),
        (("from sweeps", "import sys; sys.exit('no')\nfrom sweeps"), ("toy.py can't be read, line 2: SystemExit: no",)),
        (("from sweeps", "1 / 0\nfrom sweeps"), ("toy.py can't be read, line 2: ZeroDivisionError",)),
        (("ablation = ", "ablation = ("), ("toy.py can't be read: SyntaxError", "line 3")),
    ],
)  # fmt: skip
def test_a_mistake_in_a_declaration_is_one_line(tmp_path, change, said) -> None:
    assert change[0] in DECLARATION
    (tmp_path / "toy.py").write_text(DECLARATION.replace(*change))
    for command in ("plan", "run"):
        mistake(ablate(command, "toy.py", cwd=tmp_path), *said)
    assert not (tmp_path / "runs").exists()


def test_what_a_declaration_prints_is_none_of_the_answer(tmp_path) -> None:
    (tmp_path / "toy.py").write_text("print('hello')\n" + DECLARATION)
    done = ablate("plan", "toy.py", "--no-calibration", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["ablation"] == "toy" and "hello" in done.stderr
