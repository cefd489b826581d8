"""Workers that are really stopped, lose their lock as on a file server whose lease runs out, and wake up too late."""

import contextlib
import errno
import hashlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from core.records import fencing
from core.records import pending_record as spill
from core.records import record as records
from core.records.fencing import CLAIM_FILE, FencedOffError
from core.runtime.retry import OutOfPatienceError, Patience
from core.training.checkpoint_files import WEIGHTS, discard
from core.training.set_aside import note, set_aside
from sweeps.runs import losses
from sweeps.runs.folders import LOCK_FILE, RunLock, clean, recorded, run_folder
from sweeps.runs.ledger import MOST_LOSSES, TAKEN_OVER, Ledger
from sweeps.runs.losses import LOSSES_FILE
from sweeps.storage.storage import default_url, open_storage
from tests.forked import start as fork
from tests.forked import wait_until
from tests.sweeps.tracking.test_wandb_run import read_back
from tests.sweeps.trainers import record_of


@pytest.fixture
def plan(make_plan):
    """Two runs, the control's first: it is the one whose worker falls asleep."""
    return make_plan(seeds=(0,))


@pytest.fixture
def sweep(plan, starts, tmp_path, monkeypatch):
    """Sweeps of one folder of runs in processes of their own, and what to do to them."""
    out = tmp_path / "out"
    folder = run_folder(plan, plan.runs[0], out)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    for name, value in {"ASLEEP": str(tmp_path / "asleep"), "SLEEP_AT": "row", "SLOW_S": "60"}.items():
        monkeypatch.setenv(name, value)
    started = []

    def start(trainer="sleepy", **environment):
        arguments = (str(tmp_path / "plan.json"), str(out), trainer, "1")
        log = tmp_path / f"sweep-{len(started)}"
        started.append(fork("tests.sweeps.parent", *arguments, cwd=tmp_path, log=log, **environment))
        return started[-1]

    def asleep(folder=folder):
        """The worker that stopped itself, its lock lost."""
        wait_until(lambda: (tmp_path / "asleep").exists() and (tmp_path / "asleep").read_text())
        worker = psutil.Process(int((tmp_path / "asleep").read_text()))
        wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
        (folder / LOCK_FILE).unlink()
        return worker

    yield SimpleNamespace(out=out, folder=folder, start=start, asleep=asleep, started=started, here=tmp_path)
    for process in started:
        process.kill()
    for pid in (tmp_path / "asleep").read_text().split() if (tmp_path / "asleep").exists() else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            if (sleeper := psutil.Process(int(pid))).status() == psutil.STATUS_STOPPED:  # a test that failed
                sleeper.kill()


def contents(folder):
    """Every file of a run's folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_of(out):
    return "".join(path.read_text() for path in out.glob("logs/worker-*.log"))


def trials_of(out, url=None):
    storage = open_storage(url or default_url(out))
    return storage.get_all_trials(storage.get_study_id_from_name("balance"))


def told(trials, run):
    return [(t.state.name, t.user_attrs.get("reason")) for t in trials if t.user_attrs["run_hash"] == run.run_hash]


def assert_whole(plan, out):
    """Every run is recorded once, with the weights that lie there."""
    for run in plan.runs:
        folder = run_folder(plan, run, out)
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        record = recorded(folder, run)
        assert (record.status, record.provenance["weights_sha256"]) == ("complete", weights)
        assert not list(folder.rglob(f"*{fencing.PARTIAL}")) and not list(folder.rglob("attempts/*"))


def end(process):
    output, _ = process.communicate()
    assert process.wait() == 0
    return json.loads(output.splitlines()[-1])


LATER = [pytest.param(at, marks=pytest.mark.slow) for at in ("progress.json", WEIGHTS, "record.json")]


@pytest.mark.parametrize("at", ["row", *LATER])
def test_a_worker_that_sleeps_through_the_loss_of_its_lock_changes_nothing(sweep, plan, at):
    first = sweep.start(SLEEP_AT=at)
    worker = sweep.asleep()
    summary = end(sweep.start())
    assert (summary["done"], summary["missing"]) == (2, 0)
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0  # its sweep goes on
    assert contents(sweep.folder) == before
    assert_whole(plan, sweep.out)
    assert recorded(sweep.folder, plan.runs[0]).provenance["pid"] != worker.pid
    [said] = [line for line in log_of(sweep.out).splitlines() if "is given up here" in line]
    assert f"{plan.runs[0].label} is given up here" in said and "took this run over while this process slept" in said
    assert "Traceback" not in log_of(sweep.out)
    assert "was taken over by another process while its worker slept" in (sweep.here / "sweep-0").read_text()
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["row", WEIGHTS, "record.json"])
def test_one_that_wakes_while_the_other_still_trains_gives_way_too(sweep, plan, at):
    first = sweep.start(SLEEP_AT=at)
    worker, gate = sweep.asleep(), sweep.here / "gate"
    second = sweep.start(GATE=str(gate))
    wait_until(lambda: json.loads((sweep.folder / CLAIM_FILE).read_text())["number"] == 3)  # lost, then claimed
    wait_until((sweep.folder / "progress.json").exists)
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: "is given up here" in log_of(sweep.out))
    assert not (sweep.folder / "record.json").exists() and not (sweep.folder / WEIGHTS).exists()
    gate.touch()
    assert end(second)["missing"] == end(first)["missing"] == 0
    assert_whole(plan, sweep.out)
    assert recorded(sweep.folder, plan.runs[0]).provenance["pid"] != worker.pid
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
def test_a_record_that_was_written_before_the_sleep_stays_though_another_tells_of_it(sweep, plan):
    first = sweep.start(SLEEP_AT="told")
    worker, before = sweep.asleep(), (sweep.folder / "record.json").read_bytes()
    end(sweep.start())
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0
    assert (sweep.folder / "record.json").read_bytes() == before
    assert_whole(plan, sweep.out)
    assert told(trials_of(sweep.out), plan.runs[0]) == [("COMPLETE", None)]
    assert "another process has told of it already" in log_of(sweep.out)


@pytest.mark.slow
def test_of_two_sweeps_on_two_storages_each_tells_its_trial_of_the_one_record(sweep, plan):
    other = f"sqlite:///{sweep.here}/runs.db"
    first = sweep.start(SLEEP_AT=WEIGHTS)
    worker = sweep.asleep()
    end(sweep.start(ABLATE_STORAGE=other))
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGCONT)
    end(first)
    assert contents(sweep.folder) == before
    assert_whole(plan, sweep.out)
    for url in (None, other):
        assert told(trials_of(sweep.out, url), plan.runs[0]) == [("COMPLETE", None)]


@pytest.mark.slow
def test_one_that_is_stopped_for_good_as_it_wakes_leaves_the_run_to_the_other(sweep, plan):
    first = sweep.start()
    worker = sweep.asleep()
    end(sweep.start())
    before = contents(sweep.folder)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGCONT)
    first.wait()
    assert contents(sweep.folder) == before and "Traceback" not in log_of(sweep.out)
    assert told(trials_of(sweep.out), plan.runs[0]) == [("FAIL", "lost: worker died"), ("COMPLETE", None)]


@pytest.mark.slow
def test_a_real_training_that_sleeps_at_a_checkpoint_damages_neither_checkpoints_nor_weights(sweep, make_plan):
    settings = ["trainer.checkpoint_every=10", "trainer.keep_best=val/nelbo"]
    plan = make_plan(seeds=(0,), overrides=settings)
    (sweep.here / "plan.json").write_text(json.dumps(plan.to_json()))
    folder = run_folder(plan, plan.runs[0], sweep.out)
    first = sweep.start("sleepy_training", SLEEP_AT="latest.json")
    worker = sweep.asleep(folder)
    assert end(sweep.start("sleepy_training"))["missing"] == 0
    before = contents(folder)
    worker.send_signal(signal.SIGCONT)
    assert end(first)["missing"] == 0
    assert contents(folder) == before and not (folder / "checkpoints").exists()
    assert_whole(plan, sweep.out)
    best = hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest()
    assert recorded(folder, plan.runs[0]).best["weights_sha256"] == best
    assert "is given up here" in log_of(sweep.out) and "Traceback" not in log_of(sweep.out)


@pytest.mark.slow
def test_the_wandb_run_of_whoever_gives_way_gets_no_end_and_the_next_run_is_mirrored(sweep, plan, ledger):
    first = sweep.start(WANDB_MODE="offline")
    worker = sweep.asleep()
    [mirrored] = sweep.folder.glob("wandb/offline-run-*/run-*.wandb")
    mine = ledger()
    mine.reconcile()
    claim, _ = mine.claim()
    assert claim.folder == sweep.folder
    worker.send_signal(signal.SIGCONT)
    summary = end(first)
    assert (summary["missing"], summary["elsewhere"]) == (0, 1)  # another process holds it
    assert read_back(mirrored).exit_code is None
    assert "W&B was not to be stopped" not in log_of(sweep.out)
    [other] = run_folder(plan, plan.runs[1], sweep.out).glob("wandb/offline-run-*/run-*.wandb")
    assert read_back(other).exit_code == 0
    [trial] = [t for t in trials_of(sweep.out) if t.state.name == "COMPLETE"]
    assert trial.user_attrs["wandb"]["status"] == "offline"


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


def train_all(ledger):
    while (claim := ledger.claim()[0]) is not None:
        record = record_of(claim.run.config)
        records.write(record, claim.folder)
        ledger.finish(claim, record, {})


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
    records.write(record, taken.folder)
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
        spill.keep(record_of(claim.run.config), claim.folder)
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
        for act in (fencing.check, fencing.remove, lambda path: records.write_atomically(path, "late")):
            with pytest.raises(FencedOffError, match=f"process {os.getpid()} of .* took this run over"):
                act(tmp_path / WEIGHTS)
        records.write_atomically(tmp_path.parent / "elsewhere", "its own business")
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
        records.set_aside(tmp_path)
    assert path.read_text() == "of the successor" and not list(tmp_path.rglob("attempts/*"))


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_publish_a_record_one_wins(tmp_path, links, monkeypatch, plan):
    if not links:  # as on a FAT disk: one after the other at least

        def refuse(*paths):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    mine, theirs = (record_of(plan.runs[0].config, provenance={"pid": pid}) for pid in (1, 2))
    records.write(mine, tmp_path)
    records.write(mine, tmp_path)  # the same again is no other
    with pytest.raises(FencedOffError, match="another process has recorded this run"):
        records.write(theirs, tmp_path)
    assert records.read(tmp_path / "record.json") == mine
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def full(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def spilled(ledger, monkeypatch, tmp_path):
    """A claim whose finished record, of the weights in its folder, found no room there and was kept elsewhere."""
    mine = ledger()
    claim, _ = mine.claim()
    (claim.folder / WEIGHTS).write_bytes(b"of the first")
    weights = records.digest(b"of the first")
    record = record_of(claim.run.config, provenance={"weights_sha256": weights, "pid": 1})
    with claim.lock.heeded(), monkeypatch.context() as patched, pytest.raises(OutOfPatienceError):
        patched.setattr(os, "link", full)
        spill.keep(record, claim.folder, Patience(limit_s=0))
    assert spill.find(claim.folder) == record
    lose(claim)
    return SimpleNamespace(claim=claim, record=record)


def elsewhere(monkeypatch, tmp_path):
    """From here on on another host, which has another place for spilled records."""
    monkeypatch.setenv("ABLATE_SPILL", str(tmp_path / "spill of another host"))


def test_a_spilled_record_of_the_weights_that_lie_there_comes_home(ledger, spilled):
    other = ledger()
    assert other.reconcile() == []
    assert recorded(spilled.claim.folder, spilled.claim.run) == spilled.record
    assert spill.find(spilled.claim.folder) is None


def test_a_spilled_record_that_comes_after_another_workers_is_forgotten(ledger, spilled, monkeypatch, tmp_path):
    claim = spilled.claim
    with monkeypatch.context() as patched:
        elsewhere(patched, tmp_path)
        other = ledger()
        other.reconcile()
        train_all(other)
    before = contents(claim.folder)
    with claim.lock.heeded(), pytest.raises(FencedOffError):  # its worker found room at last
        spill.keep(spilled.record, claim.folder, Patience())
    ledger().reconcile()
    assert contents(claim.folder) == before and spill.find(claim.folder) is None
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
    assert recorded(claim.folder, claim.run) is None and spill.find(claim.folder) is None
    assert records.read(claim.folder / "attempts" / "1.json") == spilled.record
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
        spill.keep(spilled.record, claim.folder, Patience())
    assert len(tries) == 1 and not (claim.folder / "record.json").exists()


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_in_each_of_ten_sweeps_is_given_up(sweep, plan):
    starts, heard = sweep.here / "starts", ""
    for _ in range(10):
        begun, process = len(starts.read_text().splitlines()), sweep.start("slow")
        wait_until(lambda: len(starts.read_text().splitlines()) > begun or process.poll() is not None)  # noqa: B023
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # it neither notices nor asks its worker to end
            os.kill(int(starts.read_text().split()[-1]), signal.SIGKILL)
            process.kill()
        process.wait()
        heard += (sweep.here / f"sweep-{len(sweep.started) - 1}").read_text()
    assert Counter(line.split()[0] for line in starts.read_text().splitlines()) == {
        run.run_hash: MOST_LOSSES + 1 for run in plan.runs
    }
    for run in plan.runs:
        record = recorded(run_folder(plan, run, sweep.out), run)
        assert (record.status, record.reason) == ("failed", "lost: worker died 3 times (out of memory?)")
        assert f"while training {run.label}: given up after 3 losses" in heard
    retried = Ledger(plan, sweep.out, open_storage(default_url(sweep.out)))
    retried.reconcile(retry_failed=True)
    claim, _ = retried.claim()
    claim.lock.release()
    assert [lost.gave_up for lost in retried.reconcile()] == [False]  # counted anew


def test_losses_are_counted_whatever_the_storage_and_each_once(ledger, tmp_path):
    urls = [None, f"sqlite:///{tmp_path}/a.db", f"journal:{tmp_path}/b.log"]
    for count, url in enumerate(urls, start=1):
        ledger(url).reconcile()
        claim, _ = ledger(url).claim()
        claim.lock.release()  # as the worker's death does
        [trial] = [t for t in ledger(url)._study.get_trials() if t.state.name == "RUNNING"]
        losses.note(claim.folder, trial)  # a sweep that dies between the count and the trial
        assert [lost.gave_up for lost in ledger(url).reconcile()] == [count == 3]
        assert len(json.loads((claim.folder / LOSSES_FILE).read_text())) == count
    assert recorded(claim.folder, claim.run).reason == "lost: worker died 3 times (out of memory?)"


@pytest.mark.parametrize("content", ["", "[", '{"number": "x"}', "[1]", "[" * 200_000, '{"number": 1e999}'])
def test_a_claim_or_a_count_of_losses_that_is_damaged_ends_nothing(tmp_path, content: str) -> None:
    (tmp_path / fencing.CLAIM_FILE).write_text(content)
    hold = fencing.take(tmp_path)
    assert hold.is_valid()
    (tmp_path / losses.LOSSES_FILE).write_text(content)
    assert isinstance(losses._deaths(tmp_path), list)


def test_a_run_that_comes_further_between_its_losses_is_not_given_up(tmp_path) -> None:
    def died(number: int, step: int | None) -> int:
        trial = SimpleNamespace(user_attrs={"pid": number, "host": "h"}, datetime_start="t")
        return losses.note(tmp_path, trial, step)

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
