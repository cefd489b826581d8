import json

import pytest
import torch

from core.config.loading import build, load
from core.errors import UserError
from core.training.module import MaskedDiffusion
from core.training.run import train
from core.training.weights import open_run
from tests.core.training.test_run import QUICK


def test_a_run_opens_as_it_was_trained_and_on_other_data(tmp_path) -> None:
    config = build(QUICK, {"model.router.kind": "bias_balanced", "trainer.steps": 3, "trainer.validate_every": 0})
    assert train(config, tmp_path).status == "complete"
    found, denoiser = open_run(tmp_path)
    assert found == config == load(tmp_path / "config.yaml") and not denoiser.training
    fresh = MaskedDiffusion(config).denoiser
    changed = [
        name for name, value in denoiser.state_dict().items() if not torch.equal(value, fresh.state_dict()[name])
    ]
    assert "layers.0.moe.router.bias_E" in changed and "embed.weight" in changed
    assert open_run(tmp_path, {"data.corpus": "hmm"})[0].data.corpus == "hmm"


def test_a_folder_that_cannot_be_opened_says_why(tmp_path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml: name the folder of a finished run"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"num_layers": 2}}))
    with pytest.raises(UserError, match=r"has no model\.safetensors: .*leaves its weights"):
        open_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"^/.*model\.safetensors can't be read as safetensors"):
        open_run(tmp_path)
