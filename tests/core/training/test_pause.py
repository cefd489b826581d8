"""A run that is paused part-way and gone on with later is the run that was trained at one go, to the last bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.config.loading import build
from core.errors import UserError
from core.records import run_record
from core.training.checkpoint_files import saved_step
from core.training.run import train
from tests.core.training.test_run import QUICK

LONG = QUICK | {"trainer.steps": 36, "trainer.validate_every": 6, "trainer.log_every": 5}


def test_pauses_change_nothing(tmp_path: Path) -> None:
    config = build(LONG)
    whole = train(config, tmp_path / "whole")
    paused = train(config, tmp_path / "parts", until=12)
    assert (paused.status, paused.reason) == ("paused", "paused after step 12 of 36")
    assert run_record.read(tmp_path / "parts" / "record.json") == paused
    assert saved_step(tmp_path / "parts") == 12
    assert paused.metrics["val/nelbo"] == whole.validation["val/nelbo"][1]
    assert paused.validation["step"] == [6.0, 12.0]
    train(config, tmp_path / "parts", until=18)
    last = train(config, tmp_path / "parts")
    assert last.status == "complete" and saved_step(tmp_path / "parts") is None
    assert last.curve == whole.curve  # the learning rates of the whole schedule among them
    assert last.validation == whole.validation
    assert last.expert_load == whole.expert_load
    assert last.run_hash == whole.run_hash
    own, other = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_a_pause_needs_one_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"paused part-way under trainer\.strategy=single"):
        train(build(LONG, {"trainer.strategy": "deepspeed"}), tmp_path, until=12)
