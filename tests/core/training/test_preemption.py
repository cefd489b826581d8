"""A run that pauses, as asked or part-way, goes on from the very step at which it stopped, as if nothing had happened."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from safetensors.torch import load_file

from core.config.loading import build
from core.errors import UserError
from core.records import run_record
from core.training import preemption
from core.training.checkpoint_files import BEST, saved_step
from core.training.preemption import TrainingPausedError
from core.training.run import train
from tests.core.training.test_checkpoints import assert_same_end
from tests.core.training.test_run import QUICK

LONG = QUICK | {
    "trainer.steps": 60,
    "trainer.validate_every": 20,
    "trainer.log_every": 7,
    "trainer.keep_best": "val/nelbo",
}
PARTS = QUICK | {"trainer.steps": 36, "trainer.validate_every": 6, "trainer.log_every": 5}
SPREAD = {"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2, "deepspeed.stage": 2}


class At(DummyLogger):
    """Does something when the row of a step is logged."""

    def __init__(self, step: int, action) -> None:
        super().__init__()
        self.step, self.action = step, action

    def log_metrics(self, metrics, step=None) -> None:
        if step == self.step and "train/nelbo" in metrics:
            self.action()


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "devices"), [({}, 1), (SPREAD, 2)], ids=["single", "zero2"])
def test_a_paused_run_goes_on_exactly(changes: dict, devices: int, tmp_path: Path) -> None:
    config = build(LONG, changes)
    whole = train(config, tmp_path / "whole", devices=devices)
    assert whole.status == "complete", whole.reason
    cut = tmp_path / "cut"
    with pytest.raises(TrainingPausedError):
        train(config, cut, devices=devices, loggers=[At(14, preemption.request)])
    step = saved_step(cut)
    assert step is not None and 14 <= step < 60 and (devices > 1 or step == 14)
    assert not (cut / "record.json").exists() and not preemption.requested()
    again = train(config, cut, devices=devices)
    assert again.status == "complete", again.reason
    assert again.curve == whole.curve
    assert_same_end(again, whole, cut, tmp_path / "whole")
    assert again.best == whole.best and whole.best["value"] == min(whole.validation["val/nelbo"])
    assert (cut / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_a_signal_handler_can_ask(tmp_path: Path) -> None:
    """Lightning installs a handler of its own, which would end the fit without a checkpoint."""
    former = signal.signal(signal.SIGTERM, lambda *_: preemption.request())
    try:
        with pytest.raises(TrainingPausedError):
            train(build(LONG), tmp_path, loggers=[At(21, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    finally:
        signal.signal(signal.SIGTERM, former)
    assert saved_step(tmp_path) == 21


def test_a_pause_before_the_first_step_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "requested", lambda: True)
    with pytest.raises(TrainingPausedError):
        train(build(LONG), tmp_path)
    assert saved_step(tmp_path) is None


def test_a_pause_after_the_last_step_finds_a_finished_run(tmp_path: Path) -> None:
    assert train(build(LONG), tmp_path, loggers=[At(60, preemption.request)]).status == "complete"


def test_nobody_heeds_a_request_outside_a_training() -> None:
    assert not preemption.request() and not preemption.requested()
    with preemption.heeded():
        threading.Thread(target=preemption.request).run()
        assert preemption.requested()
    assert not preemption.requested()


def test_pauses_change_nothing(tmp_path: Path) -> None:
    config = build(PARTS)
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
        train(build(PARTS, {"trainer.strategy": "deepspeed"}), tmp_path, until=12)
