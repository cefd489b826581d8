"""`ablate confirm`: train the winner and the control on fresh seeds."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import launcher_options, storage_option, workers_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    launcher_options(parser)
    workers_options(parser, "number of fresh seeds")
    storage_option(parser)


COMMAND = Command("confirm", options=options, study=True, checks=("records",))
