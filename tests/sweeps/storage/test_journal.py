"""Files that are no journal are left as they are; damaged journals are named by the line, and nothing recorded is lost."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter

import optuna
import pytest
from optuna.storages.journal._file import get_lock_file

from core.errors import UserError
from sweeps.launch.local import run
from sweeps.storage.journal import DamagedJournalError, JournalLock
from sweeps.storage.retrying import StorageRefusedError
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.ledgers import opened, train_all, train_claimed
from tests.sweeps.storage.test_outages import assert_whole

FOREIGN = {
    "without an end of line": b"dear diary",
    "several lines, the last without an end": b"dear diary\nsecond line",
    "one whole line": b"dear diary\n",
    "nothing but an end of line": b"\n",
    "JSON lines": b'{"step": 1}\n{"step": 2}\n{"st',
    "a JSON object": b'{\n  "op_code": 1\n}',
    "a list": b"[1, 2]\n",
    "binary": bytes(range(256)) * 300,
    "NUL bytes": bytes(5000),
    "weights without any end of line": b"\x80\x02" + b"x" * (1 << 21),
    "not UTF-8": b"\xff\xfe\xff\n",
}


@pytest.fixture(autouse=True)
def in_time():
    """A pipe that is opened would wait for ever."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(50)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def refused(url):
    with pytest.raises(UserError) as refusal:
        open_storage(url)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_kind_is_refused_and_nothing_in_it_changes(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    assert "is not an Optuna journal; name another file" in refused(f"journal:{path}")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]  # no lock beside it either


def test_what_is_no_file_or_another_kind_of_storage_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "journal.log")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with sqlite3.connect(tmp_path / "runs.db") as database:
        database.execute("CREATE TABLE mine (a)")
    optuna.create_study(storage=open_storage(f"journal:{tmp_path}/journal.log"))
    (tmp_path / "notes").write_text("dear diary")
    before = sorted(tmp_path.iterdir())
    for url, said in {
        f"journal:{tmp_path}": f"is a folder; name a file in it, such as journal:{tmp_path}/journal.log",
        f"journal:{tmp_path}/pipe": "is a pipe or a device",
        "journal:/dev/null": "is a pipe or a device",
        f"journal:{tmp_path}/dangling": "gone/journal.log, which isn't there",
        f"journal:{tmp_path}/loop": "loop",
        f"journal:{tmp_path}/notes/journal.log": "can't be opened: ",
        f"journal:{tmp_path}/runs.db": f"is an SQLite database; write sqlite:///{tmp_path}/runs.db",
        f"sqlite:///{tmp_path}": "is a folder; name a file",
        f"sqlite:///{tmp_path}/pipe": "is a pipe or a device",
        f"sqlite:///{tmp_path}/dangling": "which isn't there",
        f"sqlite:///{tmp_path}/notes": "is not an SQLite database",
        f"sqlite:///{tmp_path}/journal.log": f"is a journal; write journal:{tmp_path}/journal.log",
    }.items():
        assert said in refused(url), url
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "notes").read_text() == "dear diary"


def test_a_journal_that_this_user_may_not_read_is_refused(tmp_path):
    program = "import sys; from sweeps.storage.storage import open_storage; open_storage(sys.argv[1])"
    path = tmp_path / "journal.log"
    path.write_text("")
    path.chmod(0)
    if os.getuid() == 0:  # whom no permission stops, so without that power
        if shutil.which("setpriv") is None:
            pytest.skip("as root, this needs setpriv")
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    else:
        drop = []
    done = subprocess.run([*drop, sys.executable, "-c", program, f"journal:{path}"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("can't be opened: Permission denied")


@pytest.mark.parametrize("left", [b"", b"{", b'{"op_', b'{"op_code":0,"worker_id":"x'])
def test_what_a_crash_left_of_a_journals_first_line_is_begun_anew(tmp_path, left):
    (tmp_path / "journal.log").write_bytes(left)
    optuna.create_study(storage=open_storage(default_url(tmp_path)), study_name="a")
    assert optuna.load_study(storage=open_storage(default_url(tmp_path)), study_name="a").trials == []


@pytest.mark.parametrize(
    ("torn", "what"),
    [
        (b"\0" * 300 + b"\n", "only bytes of NUL"),
        (b"\0" * 4 + b"\n", "only bytes of NUL"),
        (b'{"op_code":6,"worker_id":"ab\n', "no entry"),
        (b"\xff\xfe garbage\n", "no entry"),
        (b"5\n", "no entry"),
        (b"x" * 200_000 + b"\n", "no entry"),
    ],
)
@pytest.mark.parametrize("place", ["last", "before others"])
def test_a_damaged_line_is_named_and_a_new_journal_takes_the_records_in(make_plan, tmp_path, torn, what, place):
    plan, out = make_plan(seeds=(0,)), tmp_path / "out"
    url, path = default_url(out), out / "journal.log"
    ledger = opened(plan, out, url)
    train_claimed(ledger, ledger.claim()[0])
    lines = path.read_bytes().splitlines(keepends=True)
    number = len(lines) + 1 if place == "last" else 4
    path.write_bytes(b"".join([*lines[: number - 1], torn, *lines[number - 1 :]]))
    damaged = path.read_bytes()

    said = refused(url)
    assert f"line {number} is damaged ({what}); stop the sweep, move the file away (mv " in said
    assert "what is recorded stays, and a new ledger takes it in" in said
    assert path.read_bytes() == damaged
    path.rename(f"{path}.damaged")
    again = opened(plan, out, url)
    assert again.waiting() == 1
    train_all(again)
    assert_whole(plan, out, url)


@pytest.mark.parametrize("left", [b'{"op_code": 2, "worker', bytes(4096)], ids=["half a line", "zeros"])
def test_what_a_crash_or_a_power_cut_left_at_the_end_costs_nothing_but_itself(tmp_path, left):
    url = default_url(tmp_path)
    optuna.create_study(storage=open_storage(url), study_name="a")
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(left)
    optuna.load_study(storage=open_storage(url), study_name="a").set_user_attr("after", 1)
    assert optuna.load_study(storage=open_storage(url), study_name="a").user_attrs == {"after": 1}
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line)


def test_damage_while_a_sweep_is_at_work_is_one_line(tmp_path):
    url, path = default_url(tmp_path), tmp_path / "journal.log"
    study = optuna.create_study(storage=open_storage(url), study_name="a")
    with path.open("ab") as file:
        file.write(b"garbage\n")
    with pytest.raises(DamagedJournalError, match="line 2 is damaged"):
        for number in range(3):
            study.set_user_attr("a", number)
    path.write_text("dear diary")
    with pytest.raises(UserError, match="not an Optuna journal any more"):
        study.set_user_attr("a", 3)
    assert path.read_text() == "dear diary"
    path.unlink()
    with pytest.raises(StorageRefusedError, match=r"No such file or directory .*what is recorded stays"):
        study.set_user_attr("a", 4)


@pytest.mark.slow
def test_a_sweep_whose_journal_is_damaged_ends_with_one_line(make_plan, tmp_path):
    plan, out = make_plan(seeds=range(4)), tmp_path / "out"
    path, heard = out / "journal.log", Counter()

    def damage(event):
        heard[event.kind] += 1
        if event.kind == "finished" and heard["finished"] == 2:
            with get_lock_file(JournalLock(path)), path.open("ab") as file:
                file.write(bytes(100) + b"\n")

    with pytest.raises(UserError, match="is damaged"):
        run(plan, out, workers=1, on_event=damage, trainer="tests.sweeps.trainers:quick")
    assert "Traceback" not in "".join(log.read_text() for log in out.glob("logs/*"))
    path.rename(f"{path}.damaged")
    assert run(plan, out, workers=1, trainer="tests.sweeps.trainers:quick").missing == 0
    assert_whole(plan, out, default_url(out))


def test_whatever_name_a_journal_has_its_lock_is_the_same(tmp_path):
    url = default_url(tmp_path)
    optuna.create_study(storage=open_storage(url), study_name="a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ours.log").symlink_to(tmp_path / "journal.log")
    study = optuna.load_study(storage=open_storage(f"journal:{tmp_path}/elsewhere/ours.log"), study_name="a")
    study.set_user_attr("b", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "journal.log", "journal.log.flock"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["ours.log"]
