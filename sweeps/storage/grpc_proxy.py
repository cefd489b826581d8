"""A gRPC proxy of a database: many workers, few connections, and no password on their hosts."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import optuna

from core.errors import UserError
from sweeps.storage.redaction import safe_url
from sweeps.storage.storage import open_database, open_storage

THREADS = 16


def serve(url: str, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve a database as grpc://host:port until the process is ended; on_ready is told that address.

    There is no password: whoever reaches the port may write. Raises UserError for a storage or a port that can't be used.
    """
    storage = open_database(url)
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
    address = f"grpc://{host}:{port}"
    open_storage(address).close()
    on_ready(address)
    server.join()
