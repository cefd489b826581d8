"""`ablate dashboard NAME`: a live page on this machine; with --wandb ENTITY/PROJECT, the sweep's W&B workspace and report."""

import argparse
import getpass
import os
import signal
import sys

from ablations.cli import studies
from ablations.cli.command import INTERRUPTED
from ablations.cli.declarations import started_folder
from ablations.cli.recorded import load_study
from ablations.cli.terminal import console, show_json
from ablations.dashboard.poller import Poller, favour_requests
from ablations.dashboard.server import MISSING, Page, Server, application, installed
from analysis.report.files import as_markdown
from analysis.table import tables_on
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.runtime.child_process import handle_signals
from core.runtime.printable import say
from sweeps.studies.study import STUDY_KINDS


def run_dashboard(arguments: argparse.Namespace) -> int:
    """Serve the page; or save W&B's workspace and report, and say where they are."""
    if arguments.wandb is None:
        if arguments.json:
            raise UserError("--json is for --wandb; `ablate status NAME --json` says in JSON where a study stands")
        return _serve(arguments)
    for name in ("port", "storage"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is for the page on this machine, not for --wandb: leave one of them out")
    return _save(arguments)


def _save(arguments: argparse.Namespace) -> int:
    from sweeps.tracking.wandb_workspace import Content, place_of, save  # wandb

    place_of(arguments.wandb)
    study, folder = load_study(arguments)
    judgement = judge(study)
    failures = [
        f"{study.labels[arm]}, seed {seed}: {record.reason}"
        for (arm, seed), record in study.cells.items()
        if record.status == "failed"
    ]
    content = Content(
        judgement.headline, [as_markdown(table) for table in tables_on(judgement.tables, "file")], failures
    )
    _check_credentials()
    saved = save(study.design, content, arguments.wandb, folder)
    if arguments.json:
        show_json(saved)
        return 0
    for name, address in saved.items():
        console().unwrapped(f"{name}: {address}")
    return 0


def _check_credentials() -> None:
    import wandb

    try:
        wandb.Api()
    except wandb.errors.Error as error:
        raise UserError(f"W&B: {str(error).splitlines()[0]}") from None


def _serve(arguments: argparse.Namespace) -> int:
    study, kind = started_folder(arguments)
    searches = not STUDY_KINDS[kind].has_arms
    report = studies.command("report", arguments)
    poller = Poller(study, arguments.out, arguments.storage, report)
    beside = application(lambda: poller.storage if searches else None)
    with Server(Page(poller.state, beside), arguments.port or 0) as server:
        say(f"{study}: {server.url}")
        if line := tunnel(server.server_port):
            say(line)
        if searches and not installed():
            say(MISSING)
        favour_requests()
        poller.start()
        with handle_signals(signal.default_int_handler, signal.SIGTERM):
            try:
                server.serve_forever(poll_interval=0.2)
            except KeyboardInterrupt:
                say(f"\nthe page of {study} has ended; whatever trains goes on", file=sys.stderr)
            finally:
                poller.stop()
    return INTERRUPTED


def tunnel(port: int) -> str:
    """Instructions to reach the page from another machine, where this one is remote; else empty."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) != 4:
        return ""
    host = f"{getpass.getuser()}@{connection[2]}"
    return f"from your own machine, first: ssh -N -L {port}:127.0.0.1:{port} {host}"
