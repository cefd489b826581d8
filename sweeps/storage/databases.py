"""Databases as ledgers: how few connections they are given, and how two that write at once are kept apart."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util.queue import Empty

from core.errors import UserError
from sweeps.storage.journal import SQLITE_MAGIC, START, is_file

CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 60  # SQLite: how long a writer waits for another one
LINGER_S = 0.3
DRIVER_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
# A server that vanished without a word (a host that lost power) is noticed within a minute.
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}


class BriefPool(QueuePool):
    """Connections that are closed a moment after their last use.

    A worker talks for milliseconds and then trains for minutes: a connection kept meanwhile is one that others lack. To
    open one costs 10 ms, more than what is then said, so the operations of a claim share one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._last_use, self._closer = 0.0, None  # type: float, threading.Thread | None

    def settle(self) -> None:
        """Give out no more than the pool's size: only making the tables of a new database takes one more."""
        self._max_overflow = 0

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self._last_use = time.monotonic()
        if self._closer is None or not self._closer.is_alive():  # no thread outlives a fork
            self._closer = threading.Thread(target=self._close_when_idle, daemon=True, name="close idle connections")
            self._closer.start()

    def _close_when_idle(self) -> None:
        while (left := self._last_use + LINGER_S - time.monotonic()) > 0:
            time.sleep(left)
        self._closer = None  # before the closing: what is returned from here on has a thread of its own
        idle = []
        with contextlib.suppress(Empty):
            while True:
                idle.append(self._pool.get(False))
        for record in idle:
            try:
                record.close()
            finally:
                self._pool.put(record, False)  # it connects anew when it is next asked for


def open_postgres(url: URL, connections: int) -> optuna.storages.RDBStorage:
    """A PostgreSQL database, with so many connections at the most and none while nothing is said."""
    connect: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, **KEEPALIVE, "application_name": "ablate"}
    if url.get_driver_name() == "psycopg":
        connect["prepare_threshold"] = None  # a pooler such as pgbouncer hands each transaction to another server
    storage = _open(
        url,
        {"poolclass": BriefPool, "pool_size": connections, "max_overflow": 1, "pool_use_lifo": True,
         "pool_pre_ping": True, "connect_args": connect},
    )  # fmt: skip
    pool = storage.engine.pool
    assert isinstance(pool, BriefPool)
    pool.settle()
    return storage


def open_sqlite(url: URL) -> optuna.storages.RDBStorage:
    """An SQLite file, made where there is none."""
    path = Path(str(url.database))
    if not str(url.database).startswith("file:"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_sqlite(path)
    storage = _open(url, {"connect_args": {"timeout": BUSY_TIMEOUT_S}})
    _write_alone(storage.engine)
    return storage


def _open(url: URL, engine: dict[str, Any]) -> optuna.storages.RDBStorage:
    try:
        storage = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs=engine, skip_compatibility_check=True
        )
    except ImportError:
        driver = url.get_driver_name()
        raise ImportError(
            f"the driver '{driver}' is not installed: pip install '{DRIVER_PACKAGES.get(driver, driver)}'"
        ) from None
    # Optuna's own check holds one connection while it asks for a second.
    if storage.get_current_version() != storage.get_head_version():
        storage._version_manager.check_table_schema_compatibility()  # which says what to do
    return storage


def _check_sqlite(path: Path) -> None:
    if not is_file(f"storage sqlite:///{path}", path):
        return
    with path.open("rb") as file:
        first = file.read(len(SQLITE_MAGIC))
    if first and first != SQLITE_MAGIC:
        right = f"a journal; write journal:{path}" if first.startswith(START) else "not an SQLite database"
        raise UserError(f"storage sqlite:///{path} is {right}")


def _write_alone(engine: "sqlalchemy.Engine") -> None:
    """Take SQLite's write lock as a transaction begins.

    SQLite knows no SELECT ... FOR UPDATE: of two that compare and set, both would read before either writes.
    """

    @event.listens_for(engine, "connect")
    def begin_by_hand(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections from before don't know
