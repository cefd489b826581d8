"""`ablate list`: the agenda and the verdicts so far."""

import argparse

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", action="store_true", help="only 'name size', one a line")


COMMAND = Command("list", "the agenda and the verdicts so far", "ablations.cli.list:run_list", options, json=True)
