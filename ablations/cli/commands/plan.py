"""`ablate plan`: print arms, cost and the minimum detectable effect."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import exploratory_option, workers_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-calibration", action="store_true", help="don't time a few training steps")
    exploratory_option(parser)
    workers_options(parser)


COMMAND = Command("plan", options=options, study=True, settings=True, json=True, checks=("plan",), changes="ignored")
