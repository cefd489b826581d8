import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.config.loading import build
from core.config.run import RunConfig
from core.config.training import TrainerConfig
from core.errors import UserError
from core.runtime.ranks import Ranks
from core.training.communication import clip_exactly
from core.training.deepspeed_config import check_devices, engine_config, has_cuda, uses_cuda
from tests.core.training.test_run import DENSE, QUICK

PROGRAM = "import sys; from core.training.deepspeed_config import has_cuda; print(has_cuda(), 'torch' in sys.modules)"
SPREAD = QUICK | {"trainer.strategy": "deepspeed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepspeed.expert_parallel": 3}, "deepspeed.expert_parallel=3 must divide the 4 experts"),
        ({"deepspeed.stage": 0, "trainer.precision": "bf16"}, "use deepspeed.stage=1 or more"),
        ({"deepspeed.stage": 3, "model.tied_embeddings": True}, "model.tied_embeddings=true .* use deepspeed.stage=2"),
        ({"deepspeed.stage": 4}, "deepspeed.stage"),
        ({"deepspeed.stage": 1, "deepspeed.offload": "parameters"}, "offload=parameters needs deepspeed.stage=3, not 1"),
        ({"trainer.compile": True}, "trainer.compile=true isn't supported"),
        ({"trainer.strategy": "single", "deepspeed.stage": 3}, "set trainer.strategy=deepspeed"),
        ({"trainer.accumulate": 3}, "trainer.batch_size=8 can't be split into trainer.accumulate=3"),
        (DENSE | {"deepspeed.expert_parallel": 2}, "model.num_experts=0 is dense"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_with_the_reason(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(SPREAD, changes)


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"trainer.strategy": "single"}, 2, "trainer.strategy=single trains on one device, not 2"),
        ({"deepspeed.expert_parallel": 2}, 3, "must divide the number of devices, 3: use --devices 2"),
        ({}, 3, "trainer.batch_size=8 can't be split over 3 devices .* use a multiple of 3"),
        ({}, 0, "devices must be at least 1"),
    ],
)
def test_devices_that_the_run_cannot_be_spread_over_are_refused(changes: dict, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_devices(build(SPREAD, changes), devices)


def test_offload_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="deepspeed.offload=optimizer moves state from a GPU"):
        check_devices(build(SPREAD, {"deepspeed.offload": "optimizer"}), 2)


def test_the_users_json_is_merged_over_the_fields(tmp_path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}))
    config = build(SPREAD, {"deepspeed.json": str(path), "deepspeed.stage": 1, "trainer.accumulate": 2})
    merged = engine_config(config, devices=2)
    assert merged["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert merged["wall_clock_breakdown"] and merged["train_micro_batch_size_per_gpu"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"wall_clock_breakdown": true, "wall_clock_breakdown": false}', 'it has "wall_clock_breakdown" twice'),
        (
            '{"train_batch_size": 4}',
            "sets train_batch_size to 4, and by trainer.batch_size it is 8: set trainer.batch_size",
        ),
        ('{"gradient_accumulation_steps": 4}', "by trainer.accumulate it is 1"),
        ('{"train_micro_batch_size_per_gpu": "auto"}', 'sets train_micro_batch_size_per_gpu to "auto"'),
        ('{"gradient_clipping": 0.5}', "by optimizer.gradient_clip it is 1.0"),
        ('{"bf16": {"enabled": true}}', "sets bf16.enabled to true, and by trainer.precision it is false"),
        ('{"fp16": {"enabled": true, "loss_scale": 0}}', "sets fp16.enabled to true"),
        ('{"amp": {"enabled": true}}', "sets amp.enabled to true"),
        ('{"bf16": true}', "bf16 must be an object"),
        ('{"zero_optimization": {"zero_quantized_gradients": true}}', "by trainer.precision it is false"),
        ('{"zero_optimization": {"stage": 3}}', "set deepspeed.stage"),
        ('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}', 'by deepspeed.offload it is "none"'),
        ('{"zero_optimization": {"cpu_offload": true}}', "set deepspeed.offload"),
        ('{"zero_optimization": {"cpu_offload_param": true}}', "set deepspeed.offload"),
        ('{"zero_optimization": {"zenflow": {}}}', "sets zero_optimization.zenflow, which follows from the config"),
        ('{"bfloat16": {"enabled": true}}', "sets bfloat16, which"),
        ('{"gradient_allreduce_op": "sum"}', "sets gradient_allreduce_op, which"),
        ('{"optimizer": {"type": "SGD"}}', "sets optimizer, which follows from the config"),
        ('{"data_types": {"grad_accum_dtype": "bf16"}}', "sets data_types"),
        ('{"elasticity": {"enabled": true}}', "sets elasticity"),
        ('{"activation_checkpointing": {}}', "sets activation_checkpointing"),
    ],
)
def test_a_users_json_that_cannot_be_merged_is_refused(content: str, message: str, tmp_path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        check_devices(build(SPREAD, {"deepspeed.json": str(path)}), 2)


def test_what_the_users_json_says_as_the_config_does_changes_nothing(tmp_path) -> None:
    path = tmp_path / "ds.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "none"}, "overlap_comm": False}
    said = {"train_batch_size": 8, "gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": False}}
    path.write_text(json.dumps(said | {"zero_optimization": zero, "steps_per_print": 7}))
    settings = {"deepspeed.stage": 2, "trainer.precision": "bf16"}
    plain = engine_config(build(SPREAD, settings), 2)
    merged = engine_config(build(SPREAD, settings, {"deepspeed.json": str(path)}), 2)
    assert merged["zero_optimization"].pop("overlap_comm") is False and merged.pop("steps_per_print") == 7
    assert merged["zero_optimization"].pop("offload_optimizer") == {} and merged == plain
    path.write_text(json.dumps({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}))
    expected = "sets bf16.bf16_master_weights_and_grads, and of precision trainer.precision says"
    with pytest.raises(UserError, match=expected):
        engine_config(build(SPREAD, settings, {"deepspeed.json": str(path)}), 2)


def test_clipping_scales_all_gradients_to_the_limit() -> None:
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    expected = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm()
    assert clip_exactly(layer, 0.5) == pytest.approx(float(expected))
    assert torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(expert_parallel=2)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            Ranks(rank=5, size=8, local_rank=1, local_size=4, expert_parallel=2),
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2",
             "SLURM_STEP_ID": "0"},
            Ranks(rank=3, size=4, local_rank=1, local_size=2, expert_parallel=2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Ranks(expert_parallel=2)),  # a batch script, not srun's step
    ],
)  # fmt: skip
def test_ranks_are_read_from_what_the_launcher_set(environment: dict, expected: Ranks) -> None:
    assert Ranks.of_environment(2, environment) == expected


def test_unlike_hosts_are_refused() -> None:
    with pytest.raises(UserError, match="every host must start as many"):
        Ranks.of_environment(1, {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "4"})


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
