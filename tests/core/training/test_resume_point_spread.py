"""The same of runs whose ranks save together: each reads a share, and all go on from the same checkpoint."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.config.loading import build
from core.records.run_record import RunRecord
from core.runtime.ranks import Ranks
from core.training import preemption, resume_point
from core.training.checkpoint_files import FOLDER, LATEST, SET_ASIDE, keep, layout, notes, saved_step
from core.training.preemption import TrainingPausedError
from core.training.rank_launcher import launch
from core.training.run import train
from tests.core.training.test_preemption import SPREAD, At
from tests.core.training.test_resume_point import ANEW, Evil, moved
from tests.core.training.test_run import QUICK
from tests.core.training.test_seals import flip

CONFIG = build(
    QUICK | {"trainer.steps": 40, "trainer.validate_every": 20, "trainer.log_every": 4, "trainer.checkpoint_every": 5},
    SPREAD,
)
RANKS = Ranks(size=2, expert_parallel=2)
SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt")
EXPERT = "layer_1_expert_3_mp_rank_00_model_states.pt"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    record = train(CONFIG, folder, devices=2)
    assert record.status == "complete" and record.notes == []
    return record, load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(TrainingPausedError):
        train(CONFIG, folder, devices=2, loggers=[At(8, preemption.request)])
    assert len(list((folder / FOLDER).glob("step-*"))) == 2
    return folder


@pytest.fixture
def run(cut: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cut, tmp_path / "run")


def places(run: Path) -> tuple[Path, Path]:
    """Its checkpoints, the newest first."""
    first, second = sorted((run / FOLDER).glob("step-*"), key=lambda path: -int(path.name[5:]))
    return first, second


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "is not what was saved"),
    "cut": (lambda path: os.truncate(path, 700), "has 700 bytes, not"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes, not"),
    "gone": (lambda path: path.unlink(), "is missing"),
    "strange": (lambda path: path.write_bytes(pickle.dumps(Evil(path.parents[3] / "marker"))), "bytes, not"),
}


@pytest.mark.parametrize("name", [*SHARDS, EXPERT, "../latest", "../zero_to_fp32.py"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_seen(kind: str, name: str, run: Path) -> None:
    act, expected = DAMAGE[kind]
    newest, before = places(run)
    act(newest / "checkpoint" / name)
    found = resume_point.find(CONFIG, run, RANKS)
    assert found is not None and found.path == before
    said = notes(run / FOLDER)
    assert name.removeprefix("../") in said[0] and expected in said[0]
    assert said[1:] == [f"the run goes on from {before.name}"]


def assert_same(record: RunRecord, run: Path, whole: tuple[RunRecord, dict[str, torch.Tensor]]) -> None:
    assert record.status == "complete", record.reason
    assert record.curve == whole[0].curve and record.validation == whole[0].validation
    own = load_file(run / "model.safetensors")
    assert own.keys() == whole[1].keys() and all(torch.equal(own[name], whole[1][name]) for name in own)


def test_ranks_that_nobody_looked_for_agree(run: Path, whole) -> None:
    """As under torchrun and srun: no process looked at the checkpoint before them, and one alone sees the damage."""
    newest, before = places(run)
    flip(newest / "checkpoint" / SHARDS[1])
    (run / FOLDER / LATEST).write_text('{"name": "st')
    record = launch(CONFIG, run, 2)
    assert_same(record, run, whole)
    why = f"checkpoint/{SHARDS[1]} is not what was saved"
    assert notes(run / FOLDER) == [
        moved(LATEST, "it can't be read"), moved(newest.name, why), f"the run goes on from {before.name}"
    ]  # fmt: skip


def test_without_a_whole_checkpoint_it_starts_again(run: Path, whole) -> None:
    newest, before = places(run)
    for place in (newest, before):
        (place / "checkpoint" / SHARDS[0]).write_bytes(pickle.dumps(Evil(run / "marker")))
    record = train(CONFIG, run, devices=2)
    assert_same(record, run, whole)
    assert len(record.notes) == 3 and record.notes[-1] == ANEW and not (run / "marker").exists()
    assert {path.name for path in (run / FOLDER / SET_ASIDE).iterdir()} >= {newest.name, before.name}


def sealed_evil(run: Path, name: str) -> Path:
    """A checkpoint with such a pickle in it that is signed nevertheless: what the allow-list alone keeps from running."""
    newest, _ = places(run)
    torch.save({"module": Evil(run / "marker")}, newest / "checkpoint" / name)
    step = saved_step(run)
    assert step is not None
    keep(run / FOLDER, layout(CONFIG, RANKS, newest.name, step), CONFIG, {})
    return newest


@pytest.mark.parametrize("name", SHARDS)
def test_no_conversion_runs_what_a_pickle_asks_for(name: str, run: Path) -> None:
    sealed_evil(run, name)
    with pytest.raises(RuntimeError, match="can't convert"):
        resume_point.find(CONFIG, run, Ranks(size=4, expert_parallel=2), convert=True)
    assert not (run / "marker").exists()


def test_a_strangers_checkpoint_is_not_converted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in places(run):
        (place / "checkpoint" / SHARDS[1]).write_bytes(pickle.dumps(Evil(run / "marker")))
    monkeypatch.setattr(resume_point.subprocess, "run", lambda *_, **__: pytest.fail("it was read"))
    assert resume_point.find(CONFIG, run, Ranks(size=4, expert_parallel=2), convert=True) is None
    assert not (run / "marker").exists() and notes(run / FOLDER)[-1] == ANEW


def test_what_was_converted_is_sealed_too(run: Path) -> None:
    four = Ranks(size=4, expert_parallel=2)
    found = resume_point.find(CONFIG, run, four, convert=True)
    assert found is not None and found.universal and resume_point.find(CONFIG, run, four) == found
    flip(next(found.path.rglob("fp32.pt")))
    again = resume_point.find(CONFIG, run, four, convert=True)  # from what it was converted from
    assert again == found
    assert notes(run / FOLDER)[0].startswith(f"{found.path.name} was set aside")


def test_no_rank_runs_what_a_pickle_asks_for(run: Path) -> None:
    sealed_evil(run, EXPERT)
    record = train(CONFIG, run, devices=2)
    assert record.status == "failed" and "Weights only load failed" in (record.reason or "")
    assert not (run / "marker").exists()
