"""`ablate run`: train what isn't recorded yet, here or on a cluster."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import exploratory_option, positive, slurm_options, storage_option, workers_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    parser.add_argument(
        "--until-decided", action="store_true", help="buy seeds block by block, and no more for what is decided"
    )
    parser.add_argument(
        "--block",
        type=positive,
        metavar="N",
        help="with --until-decided: seeds between looks (default: a tenth, or 2)",
    )
    exploratory_option(parser)
    slurm_options(parser)
    workers_options(parser)
    storage_option(parser)


COMMAND = Command(
    "run",
    "train what isn't recorded yet",
    "ablations.cli.run:run_run",
    options,
    study=True,
    settings=True,
    by_kind=True,
    checks=("declaration", "plan"),
    changes="ignored",
)
