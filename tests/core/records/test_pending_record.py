import errno
import json
import os

import pytest

from core.records import pending_record, run_record
from core.runtime.retry import OutOfPatienceError, Patience

RECORD = run_record.RunRecord(
    status="complete", run_hash="r", arm_hash="a", seed=3, config={}, metrics={"val/nelbo": 2.5}
)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("ABLATE_SPILL", str(tmp_path / "spill"))
    return tmp_path / "spill"


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """A run's folder on a disk that is full until `disk.room` is set."""
    folder, write = tmp_path / "run", run_record.write_atomically

    class Disk:
        room, tries = False, 0

    def limited(path, text, *commit):
        if path.parent == folder and not Disk.room:
            Disk.tries += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text, *commit)

    monkeypatch.setattr(run_record, "write_atomically", limited)
    Disk.folder = folder
    return Disk


def test_a_record_waits_elsewhere_and_moves_in_when_there_is_room(disk, place, monkeypatch):
    seen = []

    def make_room(self, seconds):
        seen.append(pending_record.find(disk.folder))
        disk.room = disk.tries >= 3

    monkeypatch.setattr(Patience, "sleep", make_room)
    path = pending_record.keep(RECORD, disk.folder, Patience())
    assert seen == [RECORD] * 3
    assert run_record.read(path) == RECORD
    assert list(place.iterdir()) == []


def test_out_of_patience_it_says_where_the_record_is(disk):
    with pytest.raises(OutOfPatienceError) as given_up:
        pending_record.keep(RECORD, disk.folder, Patience(limit_s=0))
    assert str(pending_record.spill_path(disk.folder)) in str(given_up.value)
    assert pending_record.find(disk.folder) == RECORD
    pending_record.discard(disk.folder)
    assert pending_record.find(disk.folder) is None


def test_a_stop_while_waiting_leaves_the_record_where_it_is_found(disk):
    def stop():
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        pending_record.keep(RECORD, disk.folder, Patience(check=stop))
    assert pending_record.find(disk.folder) == RECORD


def test_what_others_left_there_is_not_taken_for_a_record(disk, place, monkeypatch):
    with pytest.raises(OutOfPatienceError):
        pending_record.keep(RECORD, disk.folder, Patience(limit_s=0))
    path = pending_record.spill_path(disk.folder)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"folder": "/elsewhere"}))
    assert pending_record.find(disk.folder) is None
    path.write_text("{half")
    assert pending_record.find(disk.folder) is None
    path.write_text(json.dumps(content))
    assert pending_record.find(disk.folder) == RECORD
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert pending_record.find(disk.folder) is None
