"""`ablate status`: print the runs, jobs and time left of a study."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import storage_option


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="update until no run is queued or training")
    storage_option(parser)


COMMAND = Command("status", options=options, study=True, json=True, checks=("runs",), changes="shown")
