"""Commands that compute no tensors, and every refusal of a mistake, with what computes made unimportable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.runtime.child_process import import_path
from tests.ablations.shell import ENVIRONMENT
from tests.benchmarks.commands import NAME, OF_STUDY, leave_study

HEAVY = ("torch", "lightning", "deepspeed", "wandb", "transformers")
# Runs commands one after the other and prints, as JSON, each one's exit status and what it printed.
PROGRAM = """
import contextlib, io, json, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is imported")

HEAVY = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Refusing())
from ablations.__main__ import main

done = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code or 0
    assert not HEAVY & set(sys.modules), arguments
    done.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""
WORKING = (
    ("--help",),
    ("--version",),
    ("list",),
    ("plan", *OF_STUDY, "--no-calibration"),
    ("plan", "scaling", "--size", "quick", "--no-calibration"),
    ("plan", "families", "--size", "quick", "--no-calibration"),
    ("plan", "search_balance", "--size", "quick", "--no-calibration"),
    ("run", *OF_STUDY),  # all is recorded: nothing is left to train
    ("status", *OF_STUDY),
    ("report", *OF_STUDY),
    ("verify", *OF_STUDY),
    ("retry", *OF_STUDY, "--lost"),
    ("sync", *OF_STUDY),
    ("cancel", *OF_STUDY),
    ("export", *OF_STUDY, "--arm", "{control}", "--force"),
    ("export", *OF_STUDY, "--arm", "{control}", "--force", "--target", "llada_moe_7b_a1b", "--cluster", "64xH100-80G"),
    ("run", *OF_STUDY, "--launcher", "slurm", "--dry-run", "--partition", "gpu", "--time", "1h"),
    ("describe", "llada_moe_7b_a1b"),
    ("layout", "llada_moe_7b_a1b", "--cluster", "64xH100-80G"),
)
REFUSED = (
    ((), "required: COMMAND"),
    (("run", "balence"), "unknown ablation"),
    (("run", NAME, "--size", "huge"), "unknown size"),
    (("run", NAME, "trainer.step=3"), "unknown config key"),
    (("run", NAME, "trainer.steps=many"), "whole number"),
    (("plan", NAME, "model.top_k=99"), "exceeds"),
    (("run", NAME, "--launcher", "kubernetes"), "--launcher"),
    (("run", "bad.py"), "unknown metric 'val/nelboo'"),
    (("confirm", "families"), "nothing is recorded"),
    (("export", "families"), "nothing is recorded"),
    (("report", "families"), "nothing is recorded"),
    (("verify", "families"), "nothing is recorded"),
    (("status", "families"), "nothing of families has been run"),
    (("retry", "families", "--size", "quick"), "has been run"),
    (("dashboard", "families"), "has been run"),
    (("decode", NAME), "declares no decoders"),
    (("train", "tinny"), "neither a config file nor a preset"),
    (("train", "tiny", "trainer.stepps=3"), "unknown config key"),
    (("train", "tiny", "data.corpus=nowhere"), "data.corpus"),
    (("sample", "nowhere"), "config.json"),
    (("probe", "routing", "nowhere"), "unknown ablation"),
    (("bench", "sampling", "nowhere"), "config.json"),
    (("bench", "text", "nowhere"), "config.yaml"),
    (("import", "hf", "nowhere"), "config.json"),
    (("data", "get", "nothing"), "shakespeare"),
    (("storage", "serve"), "--storage"),
    (("describe", "tinny"), "neither a config file nor a preset"),
    (("layout", "tiny", "--cluster", "64xNothing"), "unknown device"),
)
BAD = """
from sweeps.spec import Ablation, Factor

ablation = Ablation(
    question="Is an unknown metric refused?", base="tiny", factors=(Factor("model.top_k", (1, 2)),),
    control={"model.top_k": 2}, metric="val/nelboo", seeds=range(5),
)
"""


def run(commands: list[tuple[str, ...]], folder: Path, environment: dict[str, str]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each command, in one process without the libraries that compute."""
    command = [sys.executable, "-P", "-c", PROGRAM, ",".join(HEAVY)]
    said = json.dumps(commands)
    done = subprocess.run(command, input=said, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return os.environ | import_path() | ENVIRONMENT | {"HOME": str(home)}


def test_commands_that_compute_nothing_import_nothing_that_computes(tmp_path, environment) -> None:
    leave_study(tmp_path / "runs", 24)
    control = json.loads((tmp_path / "runs" / f"{NAME}.quick" / "design.json").read_text())["control"]
    commands = [tuple(word.format(control=control) for word in command) for command in WORKING]
    for command, (status, out, err) in zip(commands, run(commands, tmp_path, environment), strict=True):
        assert status == 0, (command, out, err)
        assert out, command


def test_mistakes_are_refused_without_importing_what_computes(tmp_path, environment) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    answers = run([command for command, _ in REFUSED], tmp_path, environment)
    for (command, expected), (status, _, err) in zip(REFUSED, answers, strict=True):
        assert status == 2 and expected in err, (command, status, err)
        assert len(err.strip().splitlines()) == 1, (command, err)
