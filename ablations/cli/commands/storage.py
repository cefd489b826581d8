"""`ablate storage serve`: serve a database to workers over gRPC."""

import argparse
import os

from ablations.cli.command import Command
from ablations.cli.options import positive
from core.errors import UserError
from core.runtime.printable import say


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=("serve",), metavar="serve", help="run until interrupted")
    parser.add_argument("--storage", metavar="URL", help="the database (default: $ABLATE_STORAGE)")
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=positive, default=13000, metavar="N", help="to listen on (default: 13000)")


def run_storage(arguments: argparse.Namespace) -> int:
    from sweeps.storage.storage import STORAGE_VARIABLE, serve  # Optuna

    url = arguments.storage or os.environ.get(STORAGE_VARIABLE)
    if not url:
        raise UserError(f"--storage: name the database to serve, or set {STORAGE_VARIABLE}")
    serve(url, arguments.host, arguments.port, lambda address: say(f"serving {address}"))
    return 0


COMMAND = Command("storage", options=options, handler=run_storage, usage="storage serve [options]")
