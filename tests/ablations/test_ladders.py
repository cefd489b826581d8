"""A ladder on the command line: what a plan shows and refuses, and one that is run and reported."""

import json
from pathlib import Path

import pytest

from ablations.__main__ import main
from tests.ablations.shell import ablate

DECLARATION = '''
"""A ladder small enough for a test."""
from sweeps.spec import Ablation, Ladder

def model(hidden, experts=0):
    own = {"model.num_experts": experts, "model.top_k": 2 if experts else 0, "model.expert_width": 8 if experts else 0}
    own |= {"model.dense_width": 0 if experts else 16, "model.num_layers": 1, "model.num_heads": 1, "model.head_dim": 8}
    return own | {"model.hidden_size": hidden}

SIZES = (8, 16, 32, 48)
ablation = Ablation(
    question="What does a toy's loss fall to?",
    ladder=Ladder(
        families={"dense": tuple(map(model, SIZES)), "top-2 of 4": tuple(model(size, 4) for size in SIZES)},
        tokens_per_parameter=(0.3, 0.6),
    ),
    base="tiny",
    seeds=range(1),
    settings={
        "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 16, "trainer.batch_size": 16,
        "trainer.validate_every": 0, "trainer.log_every": 10,
    },
)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(DECLARATION)
    flat = DECLARATION.replace("8, 16, 32, 48", "8, 12, 16, 24").replace(
        ', "top-2 of 4": tuple(model(size, 4) for size in SIZES)', ""
    )
    (tmp_path / "flat.py").write_text(flat)
    return tmp_path


def test_a_plan_counts_every_point_and_refuses_what_no_law_can_be_fitted_to(folder, capsys) -> None:
    assert main(["plan", "flat.py", "--no-calibration"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("ablate: ladder: scaling law: parameters differ by a factor of 3")
    assert shown.err.count("\n") == 1 and "8 arms x 1 seed = 8 runs" in shown.out
    assert "0.3 tokens each" in shown.out and "FLOPs in all; up to" in shown.out
    (folder / "runs" / "flat").mkdir(parents=True)  # as a study that was begun leaves it
    assert main(["plan", "flat.py", "--no-calibration", "--exploratory"]) == 0


@pytest.mark.slow
def test_a_ladder_is_run_and_answers_with_a_law_or_why_there_is_none(folder) -> None:
    done = ablate("run", "toy.py", "--workers", "2", cwd=folder)
    assert done.returncode == 0 and "16 runs trained" in done.stdout, done.stderr
    content = json.loads(ablate("report", "toy.py", "--json", "--files", "out", cwd=folder).stdout)
    assert len(content["ladder"]["points"]) == 16 and content["winner"] is None and content["headline"]
    assert (folder / "out" / "points.csv").exists() and (folder / content["report"]).stat().st_size > 10_000
    exported = ablate("export", "toy.py", cwd=folder)
    assert exported.returncode == 2 and "a ladder's answer is a law" in exported.stderr
