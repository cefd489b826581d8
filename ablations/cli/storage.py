"""`ablate storage`: a proxy of the database that holds the ledger."""

import argparse
import os

from core.errors import UserError
from core.runtime.printable import say


def run_storage(arguments: argparse.Namespace) -> int:
    """Serve a database to workers that shouldn't, or can't, connect to it themselves."""
    from sweeps.storage.grpc_proxy import serve
    from sweeps.storage.storage import STORAGE_VARIABLE

    url = arguments.storage or os.environ.get(STORAGE_VARIABLE)
    if not url:
        raise UserError(f"--storage: name the database to serve, or set {STORAGE_VARIABLE}")
    serve(url, arguments.host, arguments.port, lambda address: say(f"serving {address}"))
    return 0
