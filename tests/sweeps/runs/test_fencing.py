"""A run that was taken over is nobody else's: its claim, its record, and what the ledger says of it."""

import errno
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.records import fencing, pending_record, run_record
from core.records.fencing import FencedOffError
from core.runtime.retry import OutOfPatienceError, Patience
from core.training.checkpoint_files import WEIGHTS, discard, note, set_aside
from sweeps.runs import trials
from sweeps.runs.folders import LOCK_FILE, LOSSES_FILE, RunLock, clean, recorded
from sweeps.runs.ledger import TAKEN_OVER, Ledger
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.ledgers import train_all
from tests.sweeps.trainers import record_of


@pytest.fixture
def plan(make_plan):
    return make_plan(seeds=(0,))


def contents(folder):
    """Every file of a run's folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ledger(plan, tmp_path):
    """Opens the plan's ledger, as another process would."""

    def open_it(url=None):
        return Ledger(plan, tmp_path / "out", open_storage(url or default_url(tmp_path / "out")))

    open_it().reconcile()
    return open_it


def lose(claim):
    """The lock of a worker that lives is lost."""
    (claim.folder / LOCK_FILE).unlink()


def states(ledger):
    return Counter((t.state.name, t.user_attrs.get("reason")) for t in ledger._study.get_trials())


@pytest.mark.parametrize("letting_go", ["abandon", "put_back"])
def test_whoever_lost_a_run_puts_nothing_back(ledger, letting_go):
    mine, other = ledger(), ledger()
    claim, _ = mine.claim()
    lose(claim)
    assert [lost.run for lost in other.reconcile()] == [claim.run]
    taken, _ = other.claim()
    assert taken.run == claim.run
    before = states(other)
    getattr(mine, letting_go)(claim, "preempted")
    assert states(other) == before and not RunLock(taken.folder).acquire()
    record = record_of(taken.run.config)
    run_record.write(record, taken.folder)
    mine.finish(claim, record, {"wandb": {"status": "disabled"}})
    other.finish(taken, record, {})
    assert states(other) == {("FAIL", "lost: worker died"): 1, ("COMPLETE", None): 1, ("WAITING", None): 1}


def test_a_trial_on_another_storage_says_that_its_run_was_taken_over(ledger, tmp_path):
    mine, other = ledger(), ledger(f"sqlite:///{tmp_path}/runs.db")
    other.reconcile()
    claim, _ = mine.claim()
    lose(claim)
    taken, _ = other.claim()
    assert taken.run == claim.run
    mine.put_back(claim, "preempted")
    assert states(mine) == {("FAIL", TAKEN_OVER): 1, ("WAITING", None): 1}
    taken.lock.release()
    train_all(other)
    other.reconcile()
    train_all(other)
    mine.reconcile()
    assert not mine.waiting()


def test_a_run_is_taken_from_its_worker_before_it_is_given_up(ledger):
    mine, other = ledger(), ledger()
    claim, _ = mine.claim()
    (claim.folder / LOSSES_FILE).write_text(json.dumps([["a", None], ["b", None]]))
    lose(claim)
    assert [lost.gave_up for lost in other.reconcile()] == [True]
    with claim.lock.heeded(), pytest.raises(FencedOffError, match="took this run over"):
        pending_record.keep(record_of(claim.run.config), claim.folder)
    assert recorded(claim.folder, claim.run).reason == "lost: worker died 3 times (out of memory?)"


def test_what_was_partial_is_gone_once_the_run_is_taken(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "wandb").mkdir()
    mine = fencing.take(tmp_path)
    partials = [fencing.partial_of(tmp_path / name) for name in (WEIGHTS, "stages/record.json", "wandb/sync.json")]
    for partial in partials:
        partial.touch()
    (tmp_path / WEIGHTS).write_text("of the first")
    fencing.take(tmp_path)
    assert [partial.exists() for partial in partials] == [False, False, True]
    with mine.heeded():
        for act in (fencing.check, fencing.remove, lambda path: run_record.write_atomically(path, "late")):
            with pytest.raises(FencedOffError, match=f"process {os.getpid()} of .* took this run over"):
                act(tmp_path / WEIGHTS)
        run_record.write_atomically(tmp_path.parent / "elsewhere", "its own business")
    assert (tmp_path / WEIGHTS).read_text() == "of the first"


def test_what_is_taken_away_from_a_successor_is_put_back(tmp_path, monkeypatch):
    mine, path, really = fencing.take(tmp_path), tmp_path / "record.json", os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", really)
        fencing.take(tmp_path)
        path.write_text("of the successor")
        really(source, target)

    path.write_text("mine")
    monkeypatch.setattr(os, "replace", late)
    with mine.heeded(), pytest.raises(FencedOffError):
        run_record.set_aside(tmp_path)
    assert path.read_text() == "of the successor" and not list(tmp_path.rglob("attempts/*"))


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_publish_a_record_one_wins(tmp_path, links, monkeypatch, plan):
    if not links:  # as on a FAT disk: one after the other at least

        def refuse(*paths):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    mine, theirs = (record_of(plan.runs[0].config, provenance={"pid": pid}) for pid in (1, 2))
    run_record.write(mine, tmp_path)
    run_record.write(mine, tmp_path)  # the same again is no other
    with pytest.raises(FencedOffError, match="another process has recorded this run"):
        run_record.write(theirs, tmp_path)
    assert run_record.read(tmp_path / "record.json") == mine
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def full(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def spilled(ledger, monkeypatch, tmp_path):
    """A claim whose finished record, of the weights in its folder, found no room there and was kept elsewhere."""
    mine = ledger()
    claim, _ = mine.claim()
    (claim.folder / WEIGHTS).write_bytes(b"of the first")
    weights = run_record.digest(b"of the first")
    record = record_of(claim.run.config, provenance={"weights_sha256": weights, "pid": 1})
    with claim.lock.heeded(), monkeypatch.context() as patched, pytest.raises(OutOfPatienceError):
        patched.setattr(os, "link", full)
        pending_record.keep(record, claim.folder, Patience(limit_s=0))
    assert pending_record.find(claim.folder) == record
    lose(claim)
    return SimpleNamespace(claim=claim, record=record)


def elsewhere(monkeypatch, tmp_path):
    """From here on on another host, which has another place for spilled records."""
    monkeypatch.setenv("ABLATE_SPILL", str(tmp_path / "spill of another host"))


def test_a_spilled_record_of_the_weights_that_lie_there_comes_home(ledger, spilled):
    other = ledger()
    assert other.reconcile() == []
    assert recorded(spilled.claim.folder, spilled.claim.run) == spilled.record
    assert pending_record.find(spilled.claim.folder) is None


def test_a_spilled_record_that_comes_after_another_workers_is_forgotten(ledger, spilled, monkeypatch, tmp_path):
    claim = spilled.claim
    with monkeypatch.context() as patched:
        elsewhere(patched, tmp_path)
        other = ledger()
        other.reconcile()
        train_all(other)
    before = contents(claim.folder)
    with claim.lock.heeded(), pytest.raises(FencedOffError):  # its worker found room at last
        pending_record.keep(spilled.record, claim.folder, Patience())
    ledger().reconcile()
    assert contents(claim.folder) == before and pending_record.find(claim.folder) is None
    assert not list(claim.folder.rglob("attempts/*"))


def test_a_spilled_record_of_weights_that_are_gone_is_set_aside(ledger, spilled, monkeypatch, tmp_path):
    claim = spilled.claim
    with monkeypatch.context() as patched:
        elsewhere(patched, tmp_path)
        other = ledger()
        other.reconcile()
        taken, _ = other.claim()
        (taken.folder / WEIGHTS).write_bytes(b"of the second")
        taken.lock.release()  # and dies before it is done
    last = ledger()
    assert [lost.run for lost in last.reconcile()] == [claim.run]
    assert recorded(claim.folder, claim.run) is None and pending_record.find(claim.folder) is None
    assert run_record.read(claim.folder / "attempts" / "1.json") == spilled.record
    train_all(last)
    assert recorded(claim.folder, claim.run).status == "complete"


def test_whoever_waits_for_room_notices_that_its_run_was_taken(spilled, monkeypatch):
    claim, tries = spilled.claim, []

    def take_it(self, seconds):
        tries.append(seconds)
        fencing.take(claim.folder)

    monkeypatch.setattr(Patience, "sleep", take_it)
    monkeypatch.setattr(os, "link", full)
    with claim.lock.heeded(), pytest.raises(FencedOffError, match="took this run over"):
        pending_record.keep(spilled.record, claim.folder, Patience())
    assert len(tries) == 1 and not (claim.folder / "record.json").exists()


def test_losses_are_counted_whatever_the_storage_and_each_once(ledger, tmp_path):
    urls = [None, f"sqlite:///{tmp_path}/a.db", f"journal:{tmp_path}/b.log"]
    for count, url in enumerate(urls, start=1):
        ledger(url).reconcile()
        claim, _ = ledger(url).claim()
        claim.lock.release()  # as the worker's death does
        [trial] = [t for t in ledger(url)._study.get_trials() if t.state.name == "RUNNING"]
        trials.note_death(claim.folder, trial)  # a sweep that dies between the count and the trial
        assert [lost.gave_up for lost in ledger(url).reconcile()] == [count == 3]
        assert len(json.loads((claim.folder / LOSSES_FILE).read_text())) == count
    assert recorded(claim.folder, claim.run).reason == "lost: worker died 3 times (out of memory?)"


@pytest.mark.parametrize("content", ["", "[", '{"number": "x"}', "[1]", "[" * 200_000, '{"number": 1e999}'])
def test_a_claim_or_a_count_of_losses_that_is_damaged_ends_nothing(tmp_path, content: str) -> None:
    (tmp_path / fencing.CLAIM_FILE).write_text(content)
    hold = fencing.take(tmp_path)
    assert hold.is_valid()
    (tmp_path / LOSSES_FILE).write_text(content)
    assert isinstance(trials._deaths(tmp_path), list)


def test_a_run_that_comes_further_between_its_losses_is_not_given_up(tmp_path) -> None:
    def died(number: int, step: int | None) -> int:
        trial = SimpleNamespace(user_attrs={"pid": number, "host": "h"}, datetime_start="t")
        return trials.note_death(tmp_path, trial, step)

    assert [died(1, None), died(1, None), died(2, None)] == [1, 1, 2]
    assert [died(3, 10), died(4, 10), died(5, 20), died(5, 20)] == [1, 2, 1, 1]


def test_what_a_successor_has_is_not_cleaned_away(tmp_path) -> None:
    """A process that took a run and fell asleep before it emptied the folder finds another's record and weights."""
    former = fencing.take(tmp_path)
    fencing.take(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "checkpoints" / "step-10").mkdir(parents=True)
    with former.heeded():
        for act in (
            lambda: clean(tmp_path),
            lambda: set_aside(tmp_path / "checkpoints", "step-10", "why"),
            lambda: note(tmp_path / "checkpoints", "a sentence"),
            lambda: discard(tmp_path / "checkpoints" / "step-10"),
        ):
            with pytest.raises(FencedOffError):
                act()
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "checkpoints" / "step-10").is_dir()


def test_a_claim_that_can_not_be_read_for_a_moment_was_not_taken_over(tmp_path, monkeypatch) -> None:
    hold, read, failures = fencing.take(tmp_path), Path.read_bytes, [errno.EIO] * 3

    def away(path: Path) -> bytes:
        if path.name == fencing.CLAIM_FILE and failures:
            raise OSError(failures.pop(), "Input/output error")
        return read(path)

    monkeypatch.setattr(fencing, "PAUSE_S", 0.0)
    monkeypatch.setattr(Path, "read_bytes", away)
    hold.check()
    failures[:] = [errno.EIO] * 100
    with pytest.raises(OSError, match="Input/output"):
        hold.check()
