"""Unpickling for DeepSpeed admits known types; nothing else is made or called."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.runtime.child_process import import_path
from core.training.deepspeed_checkpoints import FORCED, KNOWN, only_known_types
from tests.core.training.test_resume_point import Evil


def test_deepspeed_reads_what_it_wrote_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    engine, known = TorchCheckpointEngine(), {LossScaler, ZeroStageEnum, fragment_address}
    assert {(kind.__module__, kind.__name__) for kind in known} == set(KNOWN)
    state = {"scaler": LossScaler(2.0), "stage": ZeroStageEnum.gradients, "slice": fragment_address(3, 5)}
    engine.save(state | {"weight": torch.ones(2)}, str(tmp_path / "ours.pt"))
    torch.save({"module": Evil(tmp_path / "marker")}, tmp_path / "zip.pt")
    torch.save({"module": Evil(tmp_path / "marker")}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with only_known_types():
        again = engine.load(str(tmp_path / "ours.pt"))
        for name in ("zip", "old", "bare"):
            with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
                engine.load(str(tmp_path / f"{name}.pt"))
    assert again["scaler"].cur_scale == 2.0 and (again["stage"], again["slice"]) == (state["stage"], state["slice"])
    assert not (tmp_path / "marker").exists() and FORCED not in os.environ
    engine.load(str(tmp_path / "zip.pt"))  # what these files do elsewhere
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
def test_the_conversion_runs_nothing(tmp_path: Path) -> None:
    """DeepSpeed's own module would."""
    source = tmp_path / "checkpoint"
    source.mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": Evil(tmp_path / "marker")}, source / name)
    command = [sys.executable, "-P", "-m", "core.training.deepspeed_checkpoints", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | import_path())
    assert done.returncode and "Weights only load failed" in done.stderr and not (tmp_path / "marker").exists()
    theirs = ["-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    theirs += ["--output_folder", str(tmp_path / "out"), "--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run([sys.executable, *theirs], capture_output=True)
    assert (tmp_path / "marker").exists()
