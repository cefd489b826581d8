"""`ablate dashboard`: a live page of a sweep on this machine, or its workspace and report in W&B."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import positive, storage_option


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT",
        help="save W&B's workspace and report where its runs are mirrored to instead",
    )
    storage_option(parser)
    parser.add_argument("--port", type=positive, metavar="N", help="of the page, on 127.0.0.1 (default: a free one)")


COMMAND = Command(
    "dashboard",
    "a live page of a sweep, or its W&B workspace",
    "ablations.cli.dashboard:run_dashboard",
    options,
    study=True,
    json=True,
    checks=("declaration", "runs"),
)
