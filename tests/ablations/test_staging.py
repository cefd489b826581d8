"""`ablate train` of a file with stages."""

import json
from pathlib import Path

import pytest

from tests.ablations.shell import ablate, mistake

STAGES = """
model: {hidden_size: 16, num_layers: 1, num_heads: 1, head_dim: 16, num_experts: 4, expert_width: 8}
data: {corpus: markov, sequence_length: 16, validation_sequences: 8}
optimizer: {warmup_steps: 1}
trainer: {steps: 4, batch_size: 4, validate_every: 2}
stages:
  - {name: early, select: last}
  - {name: late, settings: {model.rope_theta: 5.0e4, data.corpus: hmm}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "two.yaml").write_text(STAGES)
    return tmp_path


def test_stages_train_one_after_the_other_and_once(folder: Path) -> None:
    first = ablate("train", "two.yaml", "--stage", "early", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "stage 1/1, early" in first.stdout and "late" not in first.stdout
    both = ablate("train", "two.yaml", cwd=folder)
    assert both.returncode == 0, both.stderr
    assert "stage 1/2, early: done" in both.stdout and "stage 2/2, late, from early after step 4" in both.stdout
    (record,) = (folder / "runs" / "train").glob("*/2-late/record.json")
    assert json.loads(record.read_text())["study"]["started_from"]["metric"] == "last"
    assert f"weights: {record.relative_to(folder).parent / 'best.safetensors'}" in both.stdout
    again = ablate("train", "two.yaml", cwd=folder)
    assert again.stdout.count(": done") == 2 and "step 2/4" not in again.stdout


def test_a_failed_stage_says_why(folder: Path) -> None:
    settings = ("optimizer.learning_rate=1e30", "optimizer.gradient_clip=0", "trainer.steps=20")
    failed = ablate("train", "two.yaml", *settings, cwd=folder)
    assert failed.returncode == 1 and "ablate: stage early failed: TrainingDivergedError" in failed.stderr


def test_mistakes_are_told_in_one_line(folder: Path) -> None:
    mistake(
        ablate("train", "two.yaml", "--stage", "never", cwd=folder), "--stage never: the stages of two.yaml are early"
    )
    mistake(ablate("train", "tiny", "--stage", "early", cwd=folder), "--stage early: tiny has no stages")
    mistake(ablate("train", "two.yaml", "model.top_k=9", cwd=folder), "stage early: model.top_k=9")
    mistake(ablate("train", "two.yaml", "--devices", "2", cwd=folder), "stage early: ", "trainer.strategy=deepspeed")
    mistake(ablate("describe", "two.yaml", cwd=folder), "stages are several configs, not one")
    assert not (folder / "runs").exists()
