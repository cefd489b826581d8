"""A run is what it was made from: files that a config names are known by what they hold, not by where they lie."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.study import Study
from core.config.loading import build
from core.config.run import RunConfig
from core.data import corpora
from core.data.inputs import fingerprint
from core.errors import UserError
from core.records.provenance import data_of
from core.runtime.ranks import Ranks
from core.training.checkpoint_files import FOLDER, notes
from core.training.resume_point import find
from core.training.run import train
from sweeps.runs.folders import fits, pending, run_folder
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan
from tests.core.training.test_run import QUICK
from tests.sweeps import trainers
from tests.sweeps.conftest import SMALL, declare


def test_a_config_that_names_no_file_has_its_corpus_fingerprint_alone() -> None:
    assert fingerprint(build(QUICK)) == data_of(fingerprint(build(QUICK))) and "|" not in fingerprint(build(QUICK))
    staged = build(QUICK | {"trainer.initial_weights": "stage:0123456789abcdef"})
    assert fingerprint(staged) == fingerprint(build(QUICK))


@pytest.mark.parametrize(
    "settings",
    [
        lambda path: {"trainer.initial_weights": str(path)},
        lambda path: {"trainer.strategy": "deepspeed", "deepspeed.json": str(path)},
    ],
)
def test_a_file_overwritten_in_place_is_another_and_a_copy_elsewhere_is_not(tmp_path: Path, settings) -> None:
    path, copy = tmp_path / "file", tmp_path / "copy"
    path.write_bytes(b"abcd")
    before, stat = fingerprint(build(QUICK | settings(path))), path.stat()
    shutil.copy(path, copy)
    assert fingerprint(build(QUICK | settings(copy))) == before
    path.write_bytes(b"abce")  # as long as before, and as old
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(build(QUICK | settings(path))) != before
    path.unlink()
    with pytest.raises(UserError, match="can't be read: No such file"):
        fingerprint(build(QUICK | settings(path)))


def _with_engine(path: Path) -> Plan:
    return plan("toy", declare(settings=SMALL | {"trainer.strategy": "deepspeed", "deepspeed.json": str(path)}))


def test_runs_with_a_former_engine_file_are_not_recorded_and_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text("{}")
    before = _with_engine(path)
    for run in before.runs:
        trainers.quick(run.config, run_folder(before, run, tmp_path), study=before.study_field(run))
    assert pending(before, tmp_path) == ()
    path.write_text('{"zero_optimization": {"overlap_comm": false}}')
    after = _with_engine(path)
    assert [run.run_hash for run in after.runs] == [run.run_hash for run in before.runs]
    assert pending(after, tmp_path) == after.runs
    study = Study.load(tmp_path / "toy", after.design)
    assert study is not None and not study.cells
    assert dict(study.set_aside) == {
        "trained from another file than lies there now (deepspeed.json), so not compared": 4
    }
    now = [trainers.record_of(run.config, after.study_field(run)) for run in after.runs]
    assert all(map(fits, now, after.runs))
    old = [replace(record, data_fingerprint=data_of(record.data_fingerprint)) for record in now]
    study = Study.of(old, after.design)
    said = "recorded by a version that didn't note what deepspeed.json held, so not compared"
    assert study is not None and list(study.set_aside) == [said]


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for name, word in (("a.txt", "one two three "), ("b.txt", "four five six ")):
        (text / name).write_text(word * 200)
    config: RunConfig = build(QUICK | {"data.corpus": f"text:{text}", "data.validation_sequences": 4})
    assert train(config, tmp_path / "run", until=2).status == "paused"
    assert find(config, tmp_path / "run", Ranks()) is not None
    (text / "a.txt").write_text("two three one " * 200)
    corpora._load.cache_clear()  # another process has none of it
    assert find(config, tmp_path / "run", Ranks()) is None
    assert "what lies there now is" in notes(tmp_path / "run" / FOLDER)[0]
