"""A real PostgreSQL that is short of connections, read-only, restarted, or whose database is gone."""

import contextlib
import logging
import shutil
import threading
import time
from collections import Counter

import psycopg
import pytest
from optuna.trial import TrialState

from core.errors import UserError
from core.runtime.retry import Patience
from sweeps.launch.local import run
from sweeps.runs.ledger import Ledger
from sweeps.storage.databases import LINGER_S
from sweeps.storage.retrying import StorageRefusedError
from sweeps.storage.storage import open_storage
from tests.sweeps.ledgers import opened, train_all, train_claimed
from tests.sweeps.postgres import PASSWORD, missing, pooled, served, server
from tests.sweeps.runs.test_races import assert_each_once, race
from tests.sweeps.storage.test_outages import assert_whole, when_finished
from tests.sweeps.trainers import quick

HASTY = Patience(limit_s=30, first_s=0.1, most_s=0.3)
# Connections of the server's own aren't counted, nor of whoever counts.
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ablate'"


@pytest.fixture
def admin(postgres):
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def ledger(make_plan, tmp_path, database):
    return opened(make_plan(seeds=range(2)), tmp_path / "out", database, HASTY)


def name_of(database):
    return database.rpartition("/")[2]


@contextlib.contextmanager
def counted(connection):
    """How many connections were held, looked at a hundred times a second."""
    held, stop = [], threading.Event()

    def look():
        while not stop.wait(0.01):
            held.append(connection.execute(COUNT).fetchone()[0])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join()
        held.append(connection.execute(COUNT).fetchone()[0])  # of what was quicker than a look


def test_a_process_holds_one_connection_while_it_talks_and_none_while_it_trains(admin, ledger):
    with counted(admin) as held:
        open_storage(ledger._storage.name.replace("***", PASSWORD))
        train_all(ledger)
    assert max(held) <= 2  # two storages, of which the other one is left alone
    time.sleep(LINGER_S)
    with counted(admin) as held:
        claim, _ = ledger.claim()
        assert claim is None
    assert max(held) == 1
    time.sleep(LINGER_S + 0.2)
    assert admin.execute(COUNT).fetchone() == (0,)


def test_who_is_refused_a_connection_waits_its_turn_and_holds_nothing(database, postgres, ledger, admin, caplog):
    time.sleep(LINGER_S + 0.2)
    admin.execute(f"ALTER DATABASE {name_of(database)} CONNECTION LIMIT 0")
    admin.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")  # limits don't bind a superuser
    admin.execute("GRANT pg_read_all_data TO guest")
    url = database.replace(f"ablate:{PASSWORD}", "guest:guest")
    found = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lambda: found.append(open_storage(url)))  # without any patience
        thread.start()
        time.sleep(1.0)
        assert not found
        assert admin.execute(COUNT).fetchone() == (0,)
        admin.execute(f"ALTER DATABASE {name_of(database)} CONNECTION LIMIT -1")
        thread.join(20)
    [storage] = found
    assert storage.get_all_studies()
    assert "too many connections" in caplog.text and "it works again" in caplog.text


@pytest.mark.slow
def test_sixteen_processes_on_a_server_of_eight_connections_finish_all_runs(make_plan, tmp_path):
    if reason := missing():
        pytest.skip(reason)
    with server(connections=8) as crowded:
        url = crowded.create("runs").replace(f"ablate:{PASSWORD}", "worker:worker")
        with psycopg.connect(crowded.url("runs"), autocommit=True) as admin:
            admin.execute("CREATE ROLE worker LOGIN PASSWORD 'worker'")
            admin.execute("ALTER SCHEMA public OWNER TO worker")
            plan, out = make_plan(seeds=range(16)), tmp_path / "out"
            with counted(admin) as held:
                claimed = race(plan, out, url, 16)
            assert max(held) <= 4  # of the five that aren't reserved, the counting one has one
        assert_each_once(plan, out, url, claimed)


@pytest.mark.parametrize("served_by", ["postgres", "proxy"])
def test_a_server_that_is_read_only_for_a_while_is_waited_for(database, admin, make_plan, tmp_path, served_by, caplog):
    """As after a failover. It arrives as an internal error, which no other outage is."""
    with served(database) if served_by == "proxy" else contextlib.nullcontext(database) as url:
        ledger = opened(make_plan(seeds=range(2)), tmp_path / "out", url, HASTY)
        time.sleep(LINGER_S + 0.2)
        admin.execute(f"ALTER DATABASE {name_of(database)} SET default_transaction_read_only = on")
        threading.Timer(
            2.0, admin.execute, [f"ALTER DATABASE {name_of(database)} RESET default_transaction_read_only"]
        ).start()
        # A connection that was opened meanwhile stays read-only: none is kept while it waits.
        with caplog.at_level(logging.WARNING):
            train_all(ledger)
        assert "in a read-only transaction" in caplog.text
    assert_whole(ledger.plan, ledger.out, database)


def test_timeouts_locks_and_ended_connections_are_waited_out(database, admin, ledger, caplog):
    time.sleep(LINGER_S + 0.2)
    admin.execute(f"ALTER DATABASE {name_of(database)} SET statement_timeout = '200ms'")
    claim, _ = ledger.claim()
    with psycopg.connect(database) as other, caplog.at_level(logging.WARNING):
        other.execute("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE")
        threading.Timer(1.5, other.rollback).start()
        assert len(ledger._study.get_trials()) == 4  # its own second attempt finds the transaction aborted
    assert "statement timeout" in caplog.text and "current transaction is aborted" not in caplog.messages[-2]
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ablate'")
    train_claimed(ledger, claim)
    train_all(ledger)
    assert_whole(ledger.plan, ledger.out, database)


def refused(action):
    with pytest.raises(StorageRefusedError) as refusal:
        action()
    text = str(refusal.value)
    assert "\n" not in text and PASSWORD not in text and text.startswith("storage ")
    return text


@pytest.mark.parametrize("served_by", ["postgres", "proxy"])
def test_a_dropped_database_is_one_line_and_a_new_one_takes_the_records_in(
    database, admin, make_plan, tmp_path, served_by
):
    plan, out = make_plan(seeds=range(2)), tmp_path / "out"
    with served(database) if served_by == "proxy" else contextlib.nullcontext(database) as url:
        ledger = opened(plan, out, url, HASTY)
        claim, _ = ledger.claim()
        record = quick(claim.run.config, claim.folder)
        admin.execute(f"DROP DATABASE {name_of(database)} WITH (FORCE)")
        said = refused(lambda: ledger.finish(claim, record, {}))
        assert "does not exist; make it again" in said and "what is recorded stays" in said
    claim.lock.release()
    admin.execute(f"CREATE DATABASE {name_of(database)}")
    again = opened(plan, out, database, HASTY)
    assert again.waiting() == len(plan.runs) - 1
    train_all(again)
    assert_whole(plan, out, database)


def test_a_dropped_table_is_one_line_and_an_emptied_database_takes_the_records_in(database, ledger):
    with psycopg.connect(database, autocommit=True) as other:
        train_all(ledger)
        other.execute("DROP TABLE trials CASCADE")
        assert "its tables aren't whole: empty it" in refused(ledger.waiting)
        half = Ledger(ledger.plan, ledger.out, open_storage(database, HASTY))
        assert "its tables aren't whole: empty it" in refused(half.reconcile)
        other.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    opened(ledger.plan, ledger.out, database, HASTY)
    assert_whole(ledger.plan, ledger.out, database)


def test_a_password_that_was_changed_and_a_right_that_was_taken_are_one_line(database, ledger, admin):
    time.sleep(LINGER_S + 0.2)
    with psycopg.connect(database, autocommit=True) as inside:
        try:
            admin.execute("ALTER ROLE ablate PASSWORD 'another'")
            assert "authentication failed" in refused(ledger.waiting)
        finally:
            admin.execute(f"ALTER ROLE ablate PASSWORD '{PASSWORD}'")
        inside.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
        with pytest.raises(UserError, match="permission denied") as refusal:
            open_storage(database.replace(f"ablate:{PASSWORD}", "reader:reader")).get_all_studies()
        assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_sweep_whose_database_is_dropped_ends_with_one_line_and_trains_nothing_twice(
    make_plan, out, starts, database, admin
):
    plan, trainer = make_plan(seeds=range(4)), "tests.sweeps.trainers:slow"
    drop = when_finished(2, lambda: admin.execute(f"DROP DATABASE {name_of(database)} WITH (FORCE)"))
    with pytest.raises(UserError, match="does not exist; make it again"):
        run(plan, out, storage_url=database, workers=2, on_event=drop, trainer=trainer)
    logs = "".join(path.read_text() for path in out.glob("logs/worker-*.log"))
    assert "Traceback" not in logs and PASSWORD not in logs
    before = len(list(out.rglob("record.json")))
    admin.execute(f"CREATE DATABASE {name_of(database)}")
    summary = run(plan, out, storage_url=database, workers=2, trainer=trainer)
    assert (summary.reused, summary.done) == (before, 8 - before)
    begun = Counter(line.split()[0] for line in starts.read_text().splitlines())
    assert sum(begun.values()) - 8 <= 2  # what was in training may begin once more
    assert_whole(plan, out, database)


def test_many_that_open_a_new_database_at_once_make_its_tables_once(database):
    found, errors = [], []

    def open_it():
        try:
            found.append(open_storage(database))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [storage.get_all_studies() for storage in found] == [[]] * 6


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="no pgbouncer (Debian: apt-get install pgbouncer)")
def test_through_a_pooler_that_shares_connections_between_transactions(make_plan, tmp_path, database):
    plan, out = make_plan(seeds=range(5)), tmp_path / "out"
    with pooled(database) as url:
        claimed = race(plan, out, url, 6)
        assert_each_once(plan, out, url, claimed)
    trials = Ledger(plan, out, open_storage(database))._study.get_trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
