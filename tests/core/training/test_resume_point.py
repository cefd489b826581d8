"""A damaged checkpoint is set aside, the one before is gone on from, and the record says so: of one device.

What the run then comes to is that of one that nothing befell, to the last bit.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.config.loading import build
from core.records import run_record
from core.records.run_record import RunRecord
from core.runtime.ranks import Ranks
from core.training import seals
from core.training.checkpoint_files import FOLDER, LATEST, NOTES, SET_ASIDE, SINGLE, keep, layout, notes, saved_step
from core.training.resume_point import find
from core.training.run import train
from core.training.seals import SEAL
from tests.core.training.test_run import QUICK
from tests.core.training.test_seals import flip

CONFIG = build(QUICK | {"trainer.steps": 12, "trainer.checkpoint_every": 2})
GOES_ON = "the run goes on from step-4"
ANEW = "the run starts again from its first step"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    record = train(CONFIG, folder)
    assert record.status == "complete" and record.notes == [] and not (folder / FOLDER).exists()
    return record, (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left after step 6: its last two checkpoints are kept."""
    folder = tmp_path_factory.mktemp("cut")
    assert train(CONFIG, folder, until=6).status == "paused"
    assert {path.name for path in (folder / FOLDER).iterdir()} == {"step-4", "step-6", LATEST}
    return folder


@pytest.fixture
def run(cut: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cut, tmp_path / "run")


def newest(run: Path) -> Path:
    return run / FOLDER / "step-6" / SINGLE


def latest(run: Path) -> Path:
    return run / FOLDER / LATEST


def moved(name: str, why: str) -> str:
    return f"{name} was set aside as {FOLDER}/{SET_ASIDE}/{name}: {why}"


def both(run: Path) -> None:
    flip(newest(run), 3000)
    (run / FOLDER / "step-4" / SINGLE).unlink()


def old(run: Path) -> None:
    """As an older version left it: one file, which nothing signed."""
    content = newest(run).read_bytes()
    shutil.rmtree(run / FOLDER)
    (run / FOLDER).mkdir()
    (run / FOLDER / "step-6").write_bytes(content)
    latest(run).write_text(json.dumps(layout(CONFIG, Ranks(), "step-6", 6)))


def exchange(run: Path) -> None:
    for one, other in (("step-6", "x"), ("step-4", "step-6"), ("x", "step-4")):
        (run / FOLDER / one).rename(run / FOLDER / other)


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a flipped bit": (
        lambda run: flip(newest(run), 3000), [moved("step-6", f"{SINGLE} is not what was saved"), GOES_ON]),
    "cut": (lambda run: os.truncate(newest(run), 1000), [moved("step-6", f"{SINGLE} has 1000 bytes, not SIZE"), GOES_ON]),
    "empty": (lambda run: os.truncate(newest(run), 0), [moved("step-6", f"{SINGLE} has 0 bytes, not SIZE"), GOES_ON]),
    "a file is gone": (lambda run: newest(run).unlink(), [moved("step-6", f"{SINGLE} is missing"), GOES_ON]),
    "all is gone": (lambda run: shutil.rmtree(newest(run).parent), ["step-6 is missing", GOES_ON]),
    "the seal is gone": (
        lambda run: (newest(run).parent / SEAL).unlink(),
        [moved("step-6", "it has no seal: an older version saved it, or another program"), GOES_ON]),
    "latest.json is half": (
        lambda run: latest(run).write_text(latest(run).read_text()[:20]),
        [moved(LATEST, "it can't be read"), "the run goes on from step-6"]),
    "latest.json is empty": (
        lambda run: latest(run).write_text(""), [moved(LATEST, "it can't be read"), "the run goes on from step-6"]),
    "latest.json is gone": (lambda run: latest(run).unlink(), []),
    "latest.json leads elsewhere": (
        lambda run: latest(run).write_text('{"name": "../../x", "step": 6}'),
        [moved(LATEST, "it can't be read"), "the run goes on from step-6"]),
    "latest.json is older": (lambda run: latest(run).write_text(latest(run).read_text().replace("6", "4")), []),
    "one was never finished": (
        lambda run: (run / FOLDER / "step-8" / "x").mkdir(parents=True), []),
    "both are broken": (both, [
        moved("step-6", f"{SINGLE} is not what was saved"), moved("step-4", f"{SINGLE} is missing"), ANEW]),
    "both are gone": (
        lambda run: [shutil.rmtree(run / FOLDER / name) for name in ("step-4", "step-6")], ["step-6 is missing", ANEW]),
    "an older version's": (
        old, [moved("step-6", "it has no seal: an older version saved it, or another program"), ANEW]),
    "exchanged": (exchange, [
        moved("step-6", "it is another run's, or of another step"),
        moved("step-4", "it is another run's, or of another step"), ANEW]),
}  # fmt: skip
TRAINED = ("a flipped bit", "latest.json is half", "both are broken", "an older version's", "one was never finished")


@pytest.mark.parametrize("case", CASES)
def test_what_is_found_after_damage(case: str, run: Path) -> None:
    act, expected = CASES[case]
    size = newest(run).stat().st_size
    act(run)
    assert saved_step(run) in (6, 4)  # what asks how far the run is goes on, whatever befell latest.json
    found = find(CONFIG, run, Ranks())
    step = {GOES_ON: 4, ANEW: None}.get((expected or [""])[-1], 6)
    assert (found.step if found else None) == step
    assert notes(run / FOLDER) == [sentence.replace("SIZE", str(size)) for sentence in expected]
    assert saved_step(run) == step
    aside = {sentence.split()[0] for sentence in expected if "set aside" in sentence}
    assert {path.name for path in (run / FOLDER / SET_ASIDE).glob("*")} == aside | ({NOTES} if expected else set())
    again = find(CONFIG, run, Ranks())
    assert again == found and len(notes(run / FOLDER)) == len(expected)  # once is enough


@pytest.mark.parametrize("case", TRAINED)
def test_the_run_ends_as_if_nothing_had_happened(case: str, run: Path, whole: tuple[RunRecord, bytes]) -> None:
    act, expected = CASES[case]
    size = newest(run).stat().st_size
    act(run)
    again = train(CONFIG, run)
    assert again.status == "complete", again.reason
    assert again.curve == whole[0].curve and again.validation == whole[0].validation
    assert (run / "model.safetensors").read_bytes() == whole[1]
    assert again.notes == [sentence.replace("SIZE", str(size)) for sentence in expected]
    assert run_record.read(run / "record.json") == again
    assert (run / FOLDER / SET_ASIDE).exists() == bool(expected)  # moved, not deleted; nothing else is left
    assert {path.name for path in run.glob(f"{FOLDER}/*")} <= {SET_ASIDE}


def test_what_is_damaged_again_is_set_aside_beside_the_first(run: Path) -> None:
    for _ in range(2):
        flip(newest(run))
        assert (found := find(CONFIG, run, Ranks())) is not None and found.step == 4
        shutil.copytree(run / FOLDER / SET_ASIDE / "step-6", newest(run).parent)
        flip(newest(run))
    assert {path.name for path in (run / FOLDER / SET_ASIDE).iterdir()} == {"step-6", "step-6-2", NOTES}


def test_a_lost_key_starts_the_run_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path / "new"))
    assert find(CONFIG, run, Ranks()) is None
    why = f"it is signed with another key than {tmp_path / 'new'}"
    assert notes(run / FOLDER) == [moved("step-6", why), moved("step-4", why), ANEW]
    shutil.move(run / FOLDER / SET_ASIDE / "step-6", run / FOLDER)  # found again, the key opens what was set aside
    monkeypatch.undo()
    assert (found := find(CONFIG, run, Ranks())) is not None and found.step == 6


def test_without_a_place_for_a_key_the_run_trains_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[RunRecord, bytes]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path / "file" / "key"))
    record = train(CONFIG, tmp_path / "run")
    assert record.status == "complete" and (tmp_path / "run" / "model.safetensors").read_bytes() == whole[1]
    (said,) = record.notes
    assert said.startswith("no checkpoint from step 2 on: no key to sign it with can be kept (Not a directory")


class Evil:
    """Once it is unpickled, a file is there that must not be."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_strangers_pickle_is_never_opened(run: Path, tmp_path: Path, whole: tuple[RunRecord, bytes]) -> None:
    """Neither one that is put in a checkpoint's place nor one in a checkpoint that the stranger signed."""
    marker = tmp_path / "marker"
    torch.save({"state_dict": Evil(marker)}, newest(run))
    (run / FOLDER / "step-4" / SINGLE).write_bytes(pickle.dumps(Evil(marker)))
    record = train(CONFIG, run)
    assert record.status == "complete" and record.notes[-1] == ANEW and not marker.exists()
    assert (run / "model.safetensors").read_bytes() == whole[1]


def test_even_one_that_is_signed_runs_nothing(tmp_path: Path) -> None:
    marker, place = tmp_path / "marker", tmp_path / "run" / FOLDER / "step-4"
    place.mkdir(parents=True)
    torch.save({"state_dict": Evil(marker)}, place / SINGLE)
    keep(place.parent, layout(CONFIG, Ranks(), "step-4", 4), CONFIG, {})
    record = train(CONFIG, tmp_path / "run")
    assert record.status == "failed" and "Weights only load failed" in (record.reason or "") and not marker.exists()
    with pytest.raises(FileExistsError):  # it would have run
        marker.mkdir()
        torch.load(place / SINGLE, weights_only=False)
