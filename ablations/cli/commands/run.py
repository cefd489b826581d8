"""`ablate run`: train the runs that have no record."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import exploratory_option, launcher_options, positive, storage_option, workers_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    parser.add_argument(
        "--until-decided", action="store_true", help="add seeds in blocks, and none for comparisons that are decided"
    )
    parser.add_argument(
        "--block",
        type=positive,
        metavar="N",
        help="with --until-decided: seeds per block (default: a tenth of the declared ones, at least 2)",
    )
    exploratory_option(parser)
    launcher_options(parser)
    workers_options(parser)
    storage_option(parser)


COMMAND = Command("run", options=options, study=True, settings=True, checks=("plan",), changes="ignored")
