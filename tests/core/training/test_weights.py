"""A run opens as it was trained; the weights at the best validation are kept, whatever interrupts the run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from core.config.loading import build, load
from core.errors import UserError
from core.runtime.paths import file_sha256
from core.runtime.ranks import Ranks
from core.training.callbacks import Recorder
from core.training.checkpoint_files import BEST, FOLDER, SINGLE
from core.training.checks import check
from core.training.module import MaskedDiffusion
from core.training.run import train
from core.training.saving import BestKeeper, read_best
from core.training.weights import load_weights, open_run
from tests.core.training.test_run import QUICK
from tests.core.training.test_seals import flip

LONG = QUICK | {
    "trainer.steps": 32, "trainer.validate_every": 6, "trainer.keep_best": "load/max_vio",
    "optimizer.learning_rate": 0.02, "objective.load_balancing_weight": 0,
}  # fmt: skip


def test_the_best_validation_leaves_its_weights(tmp_path: Path) -> None:
    config = build(LONG)
    whole = train(config, tmp_path / "whole")
    column, steps = whole.validation["load/max_vio"], whole.validation["step"]
    assert steps == [6, 12, 18, 24, 30, 32]
    least = min(range(len(column)), key=column.__getitem__)
    assert 0 < least < len(column) - 1  # else nothing is shown
    best = read_best(tmp_path / "whole")
    assert best == whole.best
    assert (best["metric"], best["value"], best["step"]) == ("load/max_vio", column[least], steps[least])
    at_best = train(build(LONG), tmp_path / "until", until=best["step"])
    assert at_best.status == "paused" and at_best.best == whole.best
    paused = MaskedDiffusion(config)
    load_weights(paused.denoiser, str(tmp_path / "whole" / BEST))
    checkpoint = torch.load(tmp_path / "until" / FOLDER / f"step-{best['step']}" / SINGLE, weights_only=True)
    for name, tensor in paused.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][name]), name


def test_a_cut_off_run_neither_loses_nor_worsens_its_best(tmp_path: Path) -> None:
    config = build(LONG)
    whole, folder = train(config, tmp_path / "whole"), tmp_path / "cut"
    train(config, folder, until=8)
    shutil.copytree(folder / FOLDER, tmp_path / "kept")
    train(config, folder, until=26)  # what it saved as best is ahead of the checkpoint that is gone on from
    assert read_best(folder)["step"] > 8
    shutil.rmtree(folder / FOLDER)
    shutil.move(tmp_path / "kept", folder / FOLDER)
    again = train(config, folder)
    assert again.status == "complete" and again.best == whole.best
    assert (folder / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_damaged_best_weights_are_set_aside_and_the_record_says_so(tmp_path: Path) -> None:
    config = build(LONG, {"trainer.keep_best": "val/nelbo"})
    paused = train(config, tmp_path, until=8)
    assert paused.best["step"] == 6
    flip(tmp_path / BEST, -100)
    record = train(config, tmp_path)
    assert record.status == "complete" and record.best["step"] > 8
    assert file_sha256(tmp_path / BEST) == record.best["weights_sha256"]
    why = "it isn't what was saved; what is best is kept from here on"
    assert record.notes == [f"{BEST} was set aside as {FOLDER}/set-aside/{BEST}: {why}"]
    assert (tmp_path / FOLDER / "set-aside" / BEST).exists()


def test_a_worse_validation_replaces_nothing_and_a_new_start_forgets(tmp_path: Path) -> None:
    config = build(LONG, {"trainer.keep_best": "val/nelbo"})
    recorder, module = Recorder(config), MaskedDiffusion(config)
    keeper = BestKeeper(config, tmp_path, Ranks(), recorder)
    for step, value in ((1, float("nan")), (2, 3.0), (3, 3.5), (4, float("nan")), (5, 3.0)):
        recorder.validation = {"step": [float(step)], "val/nelbo": [value]}
        keeper.on_validation_end(None, module)
    assert (recorder.best["value"], recorder.best["step"]) == (3.0, 2)
    goes_on, anew = Recorder(config), Recorder(config)
    BestKeeper(config, tmp_path, Ranks(), goes_on).begin(goes_on=True)
    assert goes_on.best == recorder.best
    BestKeeper(config, tmp_path, Ranks(), anew).begin(goes_on=False)
    assert anew.best == {}
    assert not (tmp_path / BEST).exists()


@pytest.mark.parametrize("metric", ["load/entropy", "val/nelbo_se", "val/bits_per_byte", "nelbo"])
def test_what_a_run_does_not_minimise_is_refused_before_it_trains(metric: str) -> None:
    expected = rf"trainer\.keep_best={metric} is nothing .*: use one of val/nelbo, val/excess"
    with pytest.raises(UserError, match=expected):
        check(build(LONG, {"trainer.keep_best": metric}))


def test_a_run_opens_as_it_was_trained_and_on_other_data(tmp_path: Path) -> None:
    config = build(QUICK, {"model.router.kind": "bias_balanced", "trainer.steps": 3, "trainer.validate_every": 0})
    assert train(config, tmp_path).status == "complete"
    found, denoiser = open_run(tmp_path)
    assert found == config == load(tmp_path / "config.yaml") and not denoiser.training
    fresh = MaskedDiffusion(config).denoiser
    for name in ("layers.0.moe.router.bias_E", "embed.weight"):
        assert not torch.equal(denoiser.state_dict()[name], fresh.state_dict()[name])
    assert open_run(tmp_path, {"data.corpus": "hmm"})[0].data.corpus == "hmm"


def test_a_folder_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml: name the folder of a finished run"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"num_layers": 2}}))
    with pytest.raises(UserError, match=r"has no model\.safetensors: .*leaves its weights"):
        open_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"^/.*model\.safetensors can't be read as safetensors"):
        open_run(tmp_path)
