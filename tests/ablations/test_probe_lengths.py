"""`ablate probe lengths`: a run at the length of its validation is that validation; arms are compared at every length."""

import json
from pathlib import Path

import pytest

from core.config.loading import build
from core.training.run import train
from tests.ablations.shell import ablate, mistake
from tests.ablations.test_run import DECLARATION
from tests.core.training.test_run import QUICK


@pytest.mark.parametrize(
    "kind", [{}, {"model.causal": True, "objective.kind": "autoregressive"}], ids=["masked", "causal"]
)
def test_at_its_own_length_it_is_the_validation(kind: dict, tmp_path: Path) -> None:
    config = build(QUICK, {"trainer.steps": 2, "trainer.validate_every": 0}, kind)
    record = train(config, tmp_path / "run")
    sizes = ("--sequences", str(config.data.validation_sequences), "--lengths", "8", str(config.data.sequence_length))
    done = ablate("probe", "lengths", str(tmp_path / "run"), *sizes, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["nelbo"]
    assert found[str(config.data.sequence_length)] == pytest.approx(record.metrics["val/nelbo"], rel=1e-5)
    assert set(found) == {"8", str(config.data.sequence_length)}
    assert "nats/token" in ablate("probe", "lengths", str(tmp_path / "run"), *sizes).stdout


def test_arms_are_compared_at_every_length(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    assert ablate("run", "toy.py", "--workers", "2", cwd=tmp_path).returncode == 0
    rows = json.loads(ablate("probe", "lengths", "toy.py", "--sequences", "16", "--json", cwd=tmp_path).stdout)
    assert [row["label"] for row in rows] == ["top-k 1", "top-k 2"]
    assert set(rows[1]["means"]) == {"8", "16", "32"} == set(rows[1]["effects"]) and rows[1]["slope"]["n"] == 3
    shown = ablate("probe", "lengths", "toy.py", "--sequences", "16", cwd=tmp_path).stdout
    assert "as the length doubles" in shown and "top-k 2" in shown
    mistake(ablate("probe", "lengths", "toy.py", "--lengths", "99999", cwd=tmp_path), "exceeds model.max_positions")
    mistake(ablate("probe", "lengths", "toy.py", "--lengths", "1", cwd=tmp_path), "at least 2")
    mistake(ablate("probe", "routing", "toy.py", "--lengths", "8", cwd=tmp_path), "--lengths is an option of")
    mistake(ablate("probe", "lengths", "toy.py", "data.corpus=tree", cwd=tmp_path), "takes no setting")
    mistake(ablate("probe", "lengths", "balance", "--out", "nowhere"), "nothing is recorded")
