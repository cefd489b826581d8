"""`ablate dashboard NAME`: a page of the running study, on this machine alone."""

import argparse
import getpass
import os
import signal
import sys
import types

from ablations.cli import studies as agenda
from ablations.cli.run import INTERRUPTED
from core.runtime.printable import say


def run_page(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    study, is_search = agenda.study_of(arguments)
    from ablations.dashboard.optuna_dashboard import application, installed
    from ablations.dashboard.poller import Watcher, give_way
    from ablations.dashboard.server import Page, Server

    report = agenda.command("report", arguments)
    watcher = Watcher(study, arguments.out, arguments.storage, report)
    beside = application(lambda: watcher.storage if is_search else None)
    with Server(Page(watcher.board, beside), arguments.port or 0) as server:
        say(f"{study}: {server.url}")
        if line := tunnel(server.server_port):
            say(line)
        if is_search and not installed():
            from ablations.dashboard.optuna_dashboard import MISSING

            say(MISSING)
        give_way()
        watcher.start()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say(f"\nthe page of {study} has ended; whatever trains goes on", file=sys.stderr)
        finally:
            signal.signal(signal.SIGTERM, before)
            watcher.stop()
    return INTERRUPTED


def tunnel(port: int) -> str:
    """Where this is a remote machine: how to reach the page from one's own; else nothing."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) != 4:
        return ""
    host = f"{getpass.getuser()}@{connection[2]}"
    return f"from your own machine, first: ssh -N -L {port}:127.0.0.1:{port} {host}"


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt
