"""`ablate status`: where a sweep stands."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import storage_option


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="show it until no run is queued or in training")
    storage_option(parser)


COMMAND = Command(
    "status",
    "where a sweep stands: its runs, its jobs, the time left",
    "ablations.cli.status:run_status",
    options,
    study=True,
    json=True,
    checks=("declaration", "runs"),
    changes="shown",
)
