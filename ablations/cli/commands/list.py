"""`ablate list`: list studies with runs and verdicts so far."""

import argparse

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", action="store_true", help="print only 'name size', one per line")


COMMAND = Command("list", options=options, json=True)
