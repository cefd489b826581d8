"""Optuna storage from one URL: a journal file by default, a database, or a proxy of one."""

import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import optuna
from optuna.storages import BaseStorage

from core.errors import UserError
from core.runtime.paths import expanded
from core.runtime.retry import OutOfPatienceError, Patience
from sweeps.storage.journal import open_journal
from sweeps.storage.outages import momentary, outage, refusal
from sweeps.storage.redaction import safe_url
from sweeps.storage.retrying import PatientStorage, ProxiedStorage
from sweeps.storage.submissions import storage_of

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["STORAGE_VARIABLE", "choose_url", "default_url", "open_storage", "safe_url", "serve"]

STORAGE_VARIABLE = "ABLATE_STORAGE"
JOURNAL, PROXY = "journal", "grpc"
FORMS = "journal:PATH, sqlite:///PATH, postgresql://user:password@host/database or grpc://host:port"
CONNECT_TIMEOUT_S = 10
MOMENT = Patience(limit_s=60.0, most_s=2.0)  # for whoever waits for no outage: connections run short, a server starts
SERVED_CONNECTIONS, THREADS = 4, 16  # of a proxy, whatever the number of its clients
S = TypeVar("S", bound=BaseStorage)


def default_url(out: Path) -> str:
    """The storage of a folder of runs when none is named."""
    return f"{JOURNAL}:{out / 'journal.log'}"


def choose_url(named: str | None, out: Path, study: Path | None = None) -> str:
    """The storage that was named, else $ABLATE_STORAGE, else that of the study's newest submission, else a journal."""
    submitted = None if study is None else storage_of(study)
    return named or os.environ.get(STORAGE_VARIABLE) or submitted or default_url(out)


def open_storage(url: str, patience: Patience | None = None) -> PatientStorage:
    """Open "journal:PATH", "sqlite:///PATH", "postgresql://user:password@host/database" or "grpc://host:port".

    What is opened waits for a storage that goes away later. patience: how long, and then it waits here too; else only
    a minute, and only for a connection where they run short, or for a server that starts.
    Raises UserError, without credentials in its text, when the URL is wrong or the storage can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scheme, _, path = url.partition(":")
    name, lasting = safe_url(url), patience or Patience.of_environment()
    if scheme == JOURNAL:
        journal = _journal_path(path)
        inner = _opened(name, patience, lambda: open_journal(journal))
        return PatientStorage(inner, name, lasting)
    parsed = _parse(url)
    if parsed.drivername == PROXY:
        proxy = _opened(name, patience, lambda: _proxy(parsed))

        def reopen(broken: BaseStorage) -> BaseStorage:
            """A new channel: an old one waits up to two minutes before it tries to connect again."""
            broken.close()  # type: ignore[attr-defined]
            return _channel(parsed)

        return PatientStorage(proxy, name, lasting, reopen=reopen)
    database = _opened(name, patience, lambda: _database(parsed))
    # get_storage adds the cache of finished trials that a bare RDBStorage lacks.
    return PatientStorage(optuna.storages.get_storage(database), name, lasting, database=database)


def serve(url: str, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve a database as grpc://host:port until the process is ended; on_ready is told that address.

    Many workers then need few connections, and no password on their hosts. There is none: whoever reaches the port may
    write. Raises UserError for a storage or a port that can't be used, at once.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = None if url.startswith(f"{JOURNAL}:") else _parse(url)
    if parsed is None or parsed.drivername == PROXY:
        raise UserError(f"storage {safe_url(url)}: a proxy serves a database; use sqlite:///PATH or postgresql://...")
    database = _opened(safe_url(url), None, lambda: _database(parsed, SERVED_CONNECTIONS))
    storage = ProxiedStorage(optuna.storages.get_storage(database), database.engine.dispose)
    failures: list[Exception] = []

    def work() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.run_grpc_proxy_server(
                    storage, host=host, port=port, thread_pool=ThreadPoolExecutor(THREADS)
                )
        except Exception as error:
            failures.append(error)

    server = threading.Thread(target=work, daemon=True, name="proxy")
    server.start()
    server.join(0.5)
    if failures:
        line = safe_url(" ".join(str(failures[0]).split()))
        raise UserError(f"--port {port}: nothing can be served on {host}:{port}: {line}")
    address = f"{PROXY}://{host}:{port}"
    open_storage(address).close()
    on_ready(address)
    server.join()


def _opened(name: str, patience: Patience | None, connect: Callable[[], S]) -> S:
    def trouble(error: Exception) -> str | None:
        reason = (patience and outage(error)) or momentary(error)
        return reason and f"storage {name}: {reason}"

    try:
        return (patience or MOMENT).call(lambda again: connect(), trouble)
    except ImportError as error:
        raise UserError(f"storage {name}: {error}") from None
    except OutOfPatienceError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"storage {name} can't be opened: {error.strerror or error}") from None
    except _unusable() as error:
        reason = outage(error) or refusal(error) or str(error)
        raise UserError(f"storage {name} can't be used: {safe_url(' '.join(reason.split()))}") from None


def _unusable() -> tuple[type[Exception], ...]:
    """The exceptions of a storage that can't be used; SQLAlchemy's where it was loaded, as for a database."""
    sql = sys.modules.get("sqlalchemy.exc")
    return (optuna.exceptions.StorageInternalError, RuntimeError, *([sql.SQLAlchemyError] if sql is not None else []))


def _journal_path(path: str) -> Path:
    if not path:
        raise UserError("storage 'journal:' names no file; write journal:PATH, such as journal:runs/journal.log")
    return Path(expanded(path))


def _parse(url: str) -> "URL":
    from sqlalchemy.engine import make_url  # a journal needs none of it
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # What can't be read may hold a password anywhere: where there may be one, nothing is repeated.
        shown = f"'{safe_url(url)}'" if "@" not in url else "as it was given"
        raise UserError(f"storage {shown} is not a URL; write {FORMS}") from None
    if "@" in (parsed.host or ""):
        raise UserError("storage: its URL has more than one '@'; write the one in the password as %40")
    kind = parsed.get_backend_name()
    if kind == PROXY:
        if not parsed.host or not parsed.port:
            raise UserError(f"storage {safe_url(url)} names no host or no port; write grpc://host:port")
        return parsed
    if kind not in ("sqlite", "postgresql"):
        raise UserError(f"storage {safe_url(url)}: use {FORMS}")
    if kind == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise UserError("storage sqlite:// in memory is gone with the process; name a file: sqlite:///PATH")
        parsed = parsed.set(database=expanded(parsed.database))
    elif parsed.drivername == "postgresql":
        # SQLAlchemy would take psycopg2; ours is psycopg 3, and the older one does where it alone is there.
        older = importlib.util.find_spec("psycopg") is None and importlib.util.find_spec("psycopg2") is not None
        parsed = parsed.set(drivername=f"postgresql+{'psycopg2' if older else 'psycopg'}")
    return parsed


def _database(url: "URL", connections: int = 1) -> optuna.storages.RDBStorage:
    from sweeps.storage.databases import open_postgres, open_sqlite  # a journal needs none of it

    return open_sqlite(url) if url.get_backend_name() == "sqlite" else open_postgres(url, connections)


def _proxy(url: "URL") -> BaseStorage:
    if importlib.util.find_spec("grpc") is None:
        raise ImportError("the package 'grpcio' is not installed: pip install grpcio")
    proxy = _channel(url)
    try:
        proxy.wait_server_ready(CONNECT_TIMEOUT_S)
    except ConnectionError:
        proxy.close()
        raise ConnectionError(f"no answer within {CONNECT_TIMEOUT_S} s") from None
    return proxy


def _channel(url: "URL") -> optuna.storages.GrpcStorageProxy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.GrpcStorageProxy(host=str(url.host), port=int(url.port or 0))
