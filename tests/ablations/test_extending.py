"""The code of docs/extending.md, one test for each heading: every extension is one file that works."""

import io
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from ablations.__main__ import main
from ablations.cli import commands
from analysis.report.files import write_files
from analysis.report.html import render
from analysis.report.terminal import terminal_table
from analysis.study import Study
from analysis.verdicts.answer import PARTS
from analysis.verdicts.judge import judge
from core.config.loading import build
from core.config.model import ROUTERS
from core.config.objective import OBJECTIVES
from core.data.corpora import load
from core.data.corpus import CORPORA
from core.diffusion.decode_rules import DECODE_RULES
from core.diffusion.sampling import Sampling
from core.diffusion.unmasking import score_positions
from core.errors import UserError
from core.model.flops import count
from core.records.metrics import METRICS
from core.training.run import train
from sweeps.kinds import operations_of
from sweeps.launch.worker import StopSignal, Worker
from sweeps.runs.folders import write_design
from sweeps.storage.storage import default_url, open_storage
from sweeps.studies.study import STUDY_KINDS
from tests.analysis.conftest import make_design, make_record
from tests.core.training.test_run import QUICK
from tests.registries import kept
from tests.sweeps import trainers
from tests.sweeps.conftest import SMALL

REGISTRIES = (ROUTERS, OBJECTIVES, CORPORA, METRICS, DECODE_RULES, STUDY_KINDS, PARTS)
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def block(heading: str, place: int = 0) -> str:
    """A block of Python under a heading of the page, the first one by default."""
    _, _, section = PAGE.read_text().partition(f"\n## {heading}\n")
    return re.findall(r"^```python\n(.*?)^```", section.partition("\n## ")[0], re.S | re.M)[place]


def run_file(heading: str, folder: Path, place: int = 0) -> dict[str, Any]:
    """Run a heading's file as a user's own. Returns its names."""
    path = folder / f"{heading.lower().replace(' ', '_')}.py"
    path.write_text(block(heading, place))
    return runpy.run_path(str(path))


@pytest.fixture(autouse=True)
def registries():
    """Registries as they were, once a test is over."""
    with kept(*REGISTRIES):
        yield


def test_router(tmp_path) -> None:
    with pytest.raises(UserError, match="model.router.kind: Invalid value 'tempered', expected one of"):
        build(QUICK, {"model.router.kind": "tempered"})
    run_file("Router", tmp_path)
    config = build(QUICK, {"model.router.kind": "tempered", "model.router.sees": "mask_ratio", "trainer.steps": 2})
    assert count(config.model) == count(build(QUICK).model)  # weights are read from the class
    assert train(config, tmp_path / "run").status == "complete"
    with pytest.raises(UserError, match="model.router.kind=tempered depends on how much of a sequence is masked"):
        build(QUICK, {"model.router.kind": "tempered", "model.causal": True, "objective.kind": "autoregressive"})


def test_objective(tmp_path) -> None:
    run_file("Objective", tmp_path)
    record = train(build(QUICK, {"objective.kind": "half", "trainer.steps": 2}), tmp_path / "run")
    assert record.status == "complete" and record.metrics["val/nelbo"] > 0
    with pytest.raises(UserError, match="objective.kind=half needs model.causal=false"):
        build(QUICK, {"objective.kind": "half", "model.causal": True})


def test_corpus(tmp_path) -> None:
    run_file("Corpus", tmp_path)
    (tmp_path / "a.txt").write_text("a line of text to learn from\n" * 200)
    config = build(QUICK, {"data.corpus": f"lines:{tmp_path / 'a.txt'}", "data.validation_sequences": 2})
    corpus = load(config.data)
    assert corpus.fingerprint.startswith("lines:") and corpus.bytes_per_token is not None
    mixed = build(QUICK, {"data.corpus": f"0.5*lines:{tmp_path / 'a.txt'} + 0.5*stdlib"}).data
    assert len(load(mixed).parts) == 2


def test_metric(tmp_path) -> None:
    run_file("Metric", tmp_path)
    record = train(build(QUICK, {"trainer.steps": 2}), tmp_path / "run")
    assert record.metrics["val/worst_nelbo"] > record.metrics["val/nelbo"]
    assert METRICS["val/worst_nelbo"].goal == "min"


def test_decode_rule(tmp_path) -> None:
    with pytest.raises(UserError, match="remasking=first must be one of low_confidence, random, entropy, margin"):
        Sampling(remasking="first")
    run_file("Decode rule", tmp_path)
    tokens_M = torch.tensor([5, 2])
    scores_M = score_positions(torch.zeros(2, 8).double(), tokens_M, Sampling(remasking="first").remasking, [], [])
    assert scores_M.tolist() == [-5, -2]


def test_command(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "seeds.py").write_text(block("Command"))
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.setattr(commands, "COMMANDS", dict(commands.COMMANDS))
    commands.find()
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "ablations.cli.commands.seeds")
        assert main(["seeds", "--least", "8"]) == 0
    assert "balance 8\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "list the number of seeds of every study" in capsys.readouterr().out


def test_kind_of_study(tmp_path) -> None:
    declare = run_file("Kind of study", tmp_path)["Replication"]
    run_file("Kind of study", tmp_path, place=1)
    declared = declare(question="How far?", base="tiny", settings=SMALL, seeds=range(3))
    made = STUDY_KINDS[declared.kind].plan("mine", declared)
    assert made.design.kind == "replication" and [run.arm for run in made.runs] == ["trained"] * 3
    operations, storage = operations_of(made.design.kind), open_storage(default_url(tmp_path))
    ledger = operations.queue(made, tmp_path, storage)
    write_design(tmp_path / "mine", made.design)
    ledger.reconcile()
    Worker(ledger, trainers.quick, lambda **event: None, StopSignal()).work()
    assert operations.status("mine", tmp_path).counts["finished"] == 3
    assert all(found.trusted for found in operations.verify("mine", tmp_path, storage).values())
    study = Study.load(tmp_path / "mine")
    assert "Between 3 seeds the standard deviation is" in judge(study).headline


def test_statistical_test_that_is_shown(tmp_path, monkeypatch) -> None:
    module = ModuleType("analysis.statistics.sign_test")
    exec(block("Statistical test that is shown"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run_file("Statistical test that is shown", tmp_path, 1)
    design = make_design()
    cells = [(arm["name"], seed) for arm in design["arms"] for seed in design["seeds"]]
    study = Study.of([make_record(design, arm, seed, -0.3 if arm == "arm1" else 0.0) for arm, seed in cells])
    judgement = judge(study)
    assert judgement.to_dict()["sign_test"]["arm1"] == pytest.approx(2 / 2**6)
    assert "<h2>Sign test</h2>" in render(study, judgement)
    assert (tmp_path / "files" / "sign-test.tex") in write_files(judgement, tmp_path / "files")
    console = Console(record=True, file=io.StringIO())
    console.print(terminal_table(judgement))
    assert "Sign test" in console.export_text()
