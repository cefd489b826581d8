"""A run that is cut off goes on as if nothing had happened: the same losses at the same steps, to the last bit."""

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from core.config.loading import build
from core.config.run import RunConfig, to_yaml
from core.errors import UserError
from core.records import run_record
from core.records.run_record import RunRecord
from core.runtime.ranks import Ranks
from core.training.checkpoint_files import FOLDER, keep, layout, saved_step
from core.training.run import train
from tests.core.training.test_run import QUICK
from tests.forked import LIMIT_S, Started, is_alive, logging_to, wait_until
from tests.forked import start as fork

LONG = QUICK | {
    "trainer.steps": 60, "trainer.validate_every": 20, "trainer.log_every": 7, "trainer.checkpoint_every": 10,
}  # fmt: skip
SPREAD = {"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2}
BIASED = {"model.router.kind": "bias_balanced", "trainer.accumulate": 2}
SOURCE_ROOT = Path(__file__).resolve().parents[3]
SLOW = pytest.mark.slow


def start(config: RunConfig, folder: Path, devices: int, fresh: bool = False) -> subprocess.Popen[bytes] | Started:
    """Train in a process of its own, which waits at its end for nobody: forked, or as an interpreter of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "wanted.yaml").write_text(to_yaml(config))
    program, arguments = "tests.core.training.alone", (str(folder), str(devices))
    if not fresh:
        return fork(program, *arguments, cwd=SOURCE_ROOT, log=folder / "log")
    return subprocess.Popen([sys.executable, "-m", program, *arguments], cwd=SOURCE_ROOT, start_new_session=True)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes] | Started) -> None:
    wait_until(lambda: saved_step(folder) is not None or process.poll() is not None)
    assert saved_step(folder) is not None, "no checkpoint was saved"


def ranks_of(folder: Path) -> list[psutil.Process]:
    return [process for rank in (0, 1) for process in logging_to(folder / f"rank-{rank}.log")]


def learned(record: RunRecord) -> dict[str, list[float]]:
    """The curve without what was gathered: ZeRO-3 gathers more in the first step of an engine, before it knows the order."""
    return {name: column for name, column in record.curve.items() if name != "train/reduction_bytes"}


def assert_same_end(again: RunRecord, whole: RunRecord, cut: Path, undisturbed: Path) -> None:
    """That a run that was cut came to the validations and weights of one that was not, and kept no checkpoint."""
    assert again.validation == whole.validation
    first, second = (load_file(folder / "model.safetensors") for folder in (undisturbed, cut))
    assert all((first[name] == second[name]).all() for name in first)
    assert not (cut / FOLDER).exists()


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        pytest.param({}, 1, id="single"),
        pytest.param(SPREAD | {"deepspeed.stage": 2, "trainer.precision": "bf16"}, 2, id="zero2-bf16", marks=SLOW),
        pytest.param(SPREAD | {"deepspeed.stage": 3}, 2, id="zero3", marks=SLOW),
        pytest.param(SPREAD | {"deepspeed.stage": 0} | BIASED, 2, id="zero0-biased", marks=SLOW),
    ],
)
def test_a_killed_run_goes_on_exactly(changes: dict, devices: int, tmp_path: Path) -> None:
    config = build(LONG, changes)
    whole = train(config, tmp_path / "whole", devices=devices)
    assert whole.status == "complete", whole.reason
    cut = tmp_path / "cut"
    process = start(config, cut, devices, fresh=devices == 1)
    wait_for_checkpoint(cut, process)
    if devices == 1:
        process.kill()
        process.wait()
        assert not (cut / "record.json").exists()
    else:
        ranks = ranks_of(cut)
        ranks[1].kill()
        assert process.wait(timeout=LIMIT_S) == 0  # it said in a record what happened
        failed = run_record.read(cut / "record.json")
        assert failed.status == "failed" and "rank 1 died (signal 9" in (failed.reason or "")
        assert len(ranks) == 2 and not any(map(is_alive, ranks))
    step = saved_step(cut)
    assert step is not None and 0 < step < 60
    again = train(config, cut, devices=devices)
    assert again.status == "complete", again.reason
    assert learned(again) == learned(whole) and again.expert_load == whole.expert_load
    assert_same_end(again, whole, cut, tmp_path / "whole")


def zero2(parallel: int) -> RunConfig:
    return build(LONG, SPREAD | {"deepspeed.stage": 2, "deepspeed.expert_parallel": parallel})


def cut_off(parallel: int, folder: Path) -> Path:
    """A run on two devices that lost a rank after its first checkpoint."""
    process = start(zero2(parallel), folder, 2)
    wait_for_checkpoint(folder, process)
    ranks_of(folder)[0].kill()
    assert process.wait(timeout=LIMIT_S) == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The same run at one go on one device, which those on several equal but for rounding."""
    return train(build(LONG), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def experts_spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_off(2, tmp_path_factory.mktemp("spread") / "cut")


def assert_goes_on(cut: Path, devices: int, parallel: int, whole: RunRecord) -> None:
    """That a run that was cut off ends as the whole one in a layout."""
    again = train(zero2(parallel), cut, devices=devices)
    assert again.status == "complete", again.reason
    assert again.curve["step"] == whole.curve["step"]
    for name in ("train/nelbo", "train/load_balancing", "train/gradient_norm", "train/learning_rate"):
        assert again.curve[name] == pytest.approx(whole.curve[name], rel=1e-5), name
    assert again.metrics["val/nelbo"] == pytest.approx(whole.metrics["val/nelbo"], rel=1e-5)


@SLOW
@pytest.mark.parametrize(("devices", "parallel"), [(4, 2), (2, 1)], ids=["more-devices", "experts-together"])
def test_a_run_goes_on_in_another_layout(devices: int, parallel: int, experts_spread, whole, tmp_path: Path) -> None:
    cut = shutil.copytree(experts_spread, tmp_path / "cut", symlinks=True)
    assert_goes_on(cut, devices, parallel, whole)


@SLOW
def test_a_run_whose_experts_were_together_goes_on_with_them_apart(whole, tmp_path: Path) -> None:
    assert_goes_on(cut_off(1, tmp_path / "cut"), 2, 2, whole)


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    process = start(build(LONG, SPREAD | {"trainer.steps": 5000}), tmp_path / "run", 2)
    wait_for_checkpoint(tmp_path / "run", process)
    ranks = ranks_of(tmp_path / "run")
    assert len(ranks) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, ranks)), 60)


def test_a_checkpoint_of_another_layout_is_refused(tmp_path: Path) -> None:
    place = tmp_path / FOLDER / "step-10"
    place.mkdir(parents=True)
    config = build(LONG, SPREAD | {"deepspeed.stage": 3})
    keep(place.parent, layout(config, Ranks(size=2), "step-10", 10), config, {})
    with pytest.raises(UserError, match=r"checkpoint of another layout \(devices 2, not 4; expert_parallel 1, not 2\)"):
        train(config, tmp_path, devices=4)
