"""`ablate dashboard`: serve a live page of a study, or save its W&B workspace."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import positive, storage_option


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="save a W&B workspace and report in this project instead"
    )
    storage_option(parser)
    parser.add_argument("--port", type=positive, metavar="N", help="port on 127.0.0.1 (default: a free one)")


COMMAND = Command("dashboard", options=options, study=True, json=True, checks=("runs",))
