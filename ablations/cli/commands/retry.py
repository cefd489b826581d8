"""`ablate retry`: queue failed and lost runs again."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import launcher_options, positive, storage_option


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--failed", action="store_true", help="queue failed runs; their records are set aside")
    parser.add_argument("--lost", action="store_true", help="queue only runs whose worker died or was stopped")
    parser.add_argument("--seeds", type=positive, metavar="N", help="the value that `run` was given")
    launcher_options(parser)
    storage_option(parser)


COMMAND = Command("retry", options=options, study=True, settings=True, checks=("plan", "runs"), changes="ignored")
