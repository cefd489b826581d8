"""A run of several processes that torchrun or DeepSpeed's launcher started is the run that --devices starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.loading import build
from core.config.run import to_dict, to_yaml
from core.records import run_record
from core.training.run import train
from tests.core.training.test_run import QUICK

SPREAD = QUICK | {"trainer.strategy": "deepspeed", "deepspeed.stage": 2, "deepspeed.expert_parallel": 2}
SOURCE_ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def agents(launcher: str) -> list[list[str]]:
    """The commands that start two processes: by one launcher, or by one on each of two hosts."""
    if launcher == "deepspeed":
        places = ["--num_gpus", "2", "--master_port", str(free_port()), "--module"]
        return [[sys.executable, "-m", "deepspeed.launcher.runner", *places]]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [[sys.executable, "-m", "torch.distributed.run", *meet, "--node-rank", str(host), "-m"] for host in range(2)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> run_record.RunRecord:
    """The run in processes that the platform starts."""
    return train(build(SPREAD), tmp_path_factory.mktemp("own"), devices=2)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launchers_processes_train_the_same_run(launcher: str, own: run_record.RunRecord, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(build(to_dict(build(SPREAD)))))
    # The launcher of DeepSpeed hands out devices that a CPU doesn't have.
    environment = os.environ | {"PYTHONPATH": str(SOURCE_ROOT), "WANDB_MODE": "disabled", "DS_ACCELERATOR": "cpu"}
    command = ["ablations", "train", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]
    started = [
        subprocess.Popen(
            [*agent, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for agent in agents(launcher)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), said
    (path,) = tmp_path.rglob("record.json")
    record = run_record.read(path)
    assert record.status == "complete" and record.provenance["devices"] == 2
    assert record.curve == own.curve and record.validation == own.validation
