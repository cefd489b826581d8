import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.config.run import RunConfig
from core.config.training import TrainerConfig
from core.training.deepspeed_config import has_cuda, uses_cuda

PROGRAM = "import sys; from core.training.deepspeed_config import has_cuda; print(has_cuda(), 'torch' in sys.modules)"


def asked(**environment: str) -> list[str]:
    """A fresh process's answers: whether there is CUDA, and whether it asked torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_process_that_may_see_no_gpu_asks_nobody(hidden: str) -> None:
    assert asked(CUDA_VISIBLE_DEVICES=hidden) == ["False", "False"]


def test_torch_is_asked_where_a_driver_is_there(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").symlink_to(_library("libm.so.6"))
    assert asked(CUDA_VISIBLE_DEVICES="0", LD_LIBRARY_PATH=str(tmp_path)) == [str(torch.cuda.is_available()), "True"]


def test_a_process_that_has_torch_takes_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_cuda() == torch.cuda.is_available()
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert uses_cuda(RunConfig(trainer=TrainerConfig(accelerator="auto"))) is there
        assert not uses_cuda(RunConfig(trainer=TrainerConfig(accelerator="cpu")))


def _library(name: str) -> Path:
    """The file of a library that this process has loaded."""
    ctypes.CDLL(name)
    maps = Path("/proc/self/maps").read_text().split()
    return next(Path(part) for part in maps if part.endswith(name))
