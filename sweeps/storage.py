"""Optuna storage from one URL: a journal file by default, or a database."""

import fcntl
import os
import re
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy.engine import URL, make_url

from core.errors import UserError

JOURNAL = "journal"
CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 60  # SQLite: how long a writer waits for another one
DRIVER_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
SECRET_NAMES = re.compile(r"(?i)([?&;]|\b)((?:ssl)?password|passwd|pwd|secret|token|api_?key)=[^&;\s]*")


def default_url(out: Path) -> str:
    """The storage of a folder of runs when none is named."""
    return f"{JOURNAL}:{out / 'journal.log'}"


def open_storage(url: str) -> BaseStorage:
    """Open "journal:PATH", "sqlite:///PATH" or "postgresql://user:password@host/database".

    Raises UserError, without credentials in its text, when the URL is wrong or the database can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scheme, _, path = url.partition(":")
    if scheme == JOURNAL:
        return _open_journal(Path(path).expanduser() if path else None)
    return _open_database(_parse(url))


def safe_url(url: str) -> str:
    """The URL fit for a log: passwords masked, in the authority and in the query."""
    masked = re.sub(r"(://[^/@:\s]*):.*@", r"\1:***@", url)
    return SECRET_NAMES.sub(r"\1\2=***", masked)


def _open_journal(path: Path | None) -> JournalStorage:
    if path is None:
        raise UserError("storage 'journal:' names no file; write journal:PATH, such as journal:runs/journal.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
    except OSError as error:
        raise UserError(f"storage journal:{path} can't be opened: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"storage journal:{path} is not an Optuna journal; name another file, or move this one away"
        ) from None


class JournalLock(BaseJournalFileLock):
    """An exclusive lock on a journal that ends with the process that holds it.

    Optuna's own lock file outlives a killed process and stalls the others for 30 s. A last line that a full disk or a
    power cut left unfinished is cut off before the next one is appended: nobody has been told of it.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._lock_file = journal, journal.with_name(f"{journal.name}.flock")
        self._handle = -1

    def acquire(self) -> bool:
        self._handle = os.open(self._lock_file, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._cut_unfinished_line()
        except BaseException:  # Ctrl-C too: a lock that is kept by mistake stops every worker
            os.close(self._handle)
            raise
        return True

    def release(self) -> None:
        os.close(self._handle)

    def _cut_unfinished_line(self) -> None:
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError(
            f"storage '{safe_url(url)}' is not a URL; write journal:PATH, sqlite:///PATH or "
            "postgresql://user:password@host/database"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"storage {safe_url(url)}: use journal:PATH, sqlite:///PATH or postgresql://...")
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise UserError("storage sqlite:// in memory is gone with the process; name a file: sqlite:///PATH")
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"storage {url} can't be opened: {error.strerror}") from None
    return parsed


def _open_database(url: URL) -> BaseStorage:
    text = url.render_as_string(hide_password=False)
    engine: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S}}
    if url.get_backend_name() == "sqlite":
        engine = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    try:
        # get_storage adds the cache of finished trials that a bare RDBStorage lacks.
        return optuna.storages.get_storage(optuna.storages.RDBStorage(text, engine_kwargs=engine))
    except ImportError:
        driver = url.get_driver_name()
        package = DRIVER_PACKAGES.get(driver, driver)
        raise UserError(
            f"storage {safe_url(text)}: the driver '{driver}' is not installed: pip install '{package}'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = _without_secrets(str(getattr(error, "orig", None) or error), url)
        raise UserError(f"storage {safe_url(text)} can't be used: {reason}") from None


def _without_secrets(message: str, url: URL) -> str:
    line = safe_url(" ".join(message.split()))
    return line.replace(str(url.password), "***") if url.password else line
