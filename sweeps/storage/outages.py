"""Classification of storage errors: outages, which end by themselves, and errors that need action.

A database says so by its SQLSTATE, whose first two characters are its class. Where a connection was refused the driver
passes on words alone.
"""

import errno
import sys

from optuna.exceptions import StorageInternalError

from core.runtime.retry import no_space
from sweeps.storage.redaction import safe_url

UNREACHABLE = "storage unreachable"  # how a proxy's clients know what its server met
REFUSED = "storage refused"
# Connection lost (08), serialization and deadlock (40), read-only as after a failover (25006), idle or slow in a
# transaction (25P03, 25P04), out of something (53), a lock not given (55P03), shut down or cancelled (57), disk (58).
OUTAGES = ("08", "25006", "25P03", "25P04", "40001", "40003", "40P01", "53", "55P03", "57", "58")
PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH)  # a file server that is away
ABORTED = "25P02"  # says only that the transaction failed before: the reason is that of its context
CROWDED, STARTING = "53300", "57P03"
MADE_MEANWHILE = ("23505", "42P07", "42710")  # by another process that opens a new database at the same moment
NO_DATABASE = "3D000"
NOT_WHOLE = ("42P01", "23503", "23505")  # a table is gone, or what is left of one refers to it
# What a database says of a mistake, not of an outage, where it gives no SQLSTATE.
USER_ERRORS = (
    "authentication failed", "does not exist", "no such table", "no such database", "no such user",
    "readonly database", "no pg_hba.conf entry", "no password supplied", "not permitted to log in", "permission denied",
    "certificate verify failed", "does not support SSL", "not a database", "malformed",
)  # fmt: skip
CROWDED_WORDS = ("too many clients", "too many connections", "connection slots are reserved", "no more connections")
STARTING_WORDS = ("starting up", "shutting down", "not yet accepting connections", "in recovery mode")
ADOPTED = "what is recorded stays, and a new ledger takes it in (a search draws anew)"


def outage(error: BaseException | None) -> str | None:
    """Message for an error of a storage that is away, read-only, full or busy; None for any other."""
    error = _root(error)
    if _of_database(error):
        return _line(error) if _passes(error) else None
    if isinstance(error, ConnectionError):
        return _line(error)
    if (code := _grpc_code(error)) is not None:
        unreachable = code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") or (code == "UNKNOWN" and UNREACHABLE in str(error))
        return _line(error) if unreachable else None
    if isinstance(error, OSError):
        return _line(error) if error.errno in PASSING else no_space(error)
    return None


def momentary(error: BaseException | None) -> str | None:
    """Message for a brief outage: connections run short, a server that starts."""
    error, state = _root(error), _state(error)
    if not _of_database(error):
        return None
    words = str(getattr(error, "orig", error))
    if state is None:
        passes = any(said in words for said in CROWDED_WORDS + STARTING_WORDS)
    else:
        passes = state in (CROWDED, STARTING, *MADE_MEANWHILE)
    return _line(error) if passes else None


def refusal(error: BaseException | None) -> str | None:
    """Message for an error of the storage that waiting doesn't mend, with what to do; None for one of the program."""
    error = _root(error)
    if _of_database(error):
        return _line(error) + _advice(error)
    if (code := _grpc_code(error)) is not None:
        return f"{code}: {_line(error)}" if REFUSED not in str(error) else _line(error).partition(f"{REFUSED}: ")[2]
    if isinstance(error, OSError):
        return _line(error) + (f"; start again: {ADOPTED}" if isinstance(error, FileNotFoundError) else "")
    return None


def _advice(error: BaseException | None) -> str:
    state, words = _state(error), str(getattr(error, "orig", error))
    if state == NO_DATABASE or "no such database" in words or ("database" in words and "does not exist" in words):
        return f"; make it again or name another one, and start again: {ADOPTED}"
    if state in NOT_WHOLE or "no such table" in words:
        return f"; its tables aren't whole: empty it or name another one, and start again: {ADOPTED}"
    return ""


def _root(error: BaseException | None) -> BaseException | None:
    """The error that Optuna wrapped, or that ended the transaction of which the wrapped one tells."""
    while error is not None:
        if isinstance(error, StorageInternalError):
            error = error.__cause__
        elif (_state(error) == ABORTED or type(error).__name__ == "PendingRollbackError") and error.__context__:
            error = error.__context__
        else:
            break
    return error


def _of_database(error: BaseException | None) -> bool:
    sql = sys.modules.get("sqlalchemy.exc")  # else there is no database
    return sql is not None and isinstance(error, sql.SQLAlchemyError)


def _state(error: BaseException | None) -> str | None:
    """The SQLSTATE that the server gave: psycopg and psycopg2 call it by two names."""
    while error is not None:
        found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if found is not None:
            return str(found)
        error = getattr(error, "orig", None)
    return None


def _passes(error: BaseException | None) -> bool:
    sql, state = sys.modules["sqlalchemy.exc"], _state(error)
    if isinstance(error, sql.TimeoutError):
        return True
    if state is not None and (state.startswith(OUTAGES) or state[:2] in ("28", "3D", "42")):
        return state.startswith(OUTAGES)
    if isinstance(error, sql.DBAPIError) and error.connection_invalidated:
        return True
    connection = isinstance(error, sql.OperationalError | sql.InterfaceError)
    return connection and not any(words in str(getattr(error, "orig", error)) for words in USER_ERRORS)


def _grpc_code(error: BaseException | None) -> str | None:
    grpc = sys.modules.get("grpc")
    return str(error.code().name) if grpc is not None and isinstance(error, grpc.RpcError) else None


def _line(error: BaseException | None) -> str:
    """As one line without credentials."""
    if _of_database(error):
        text = str(getattr(error, "orig", None) or error)
    elif _grpc_code(error) is not None:
        text = str(error.details())  # type: ignore[union-attr]
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    else:
        text = str(error)
    return safe_url(" ".join(text.split()))[:300] or type(error).__name__
