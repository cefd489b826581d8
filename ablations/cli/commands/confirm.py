"""`ablate confirm`: the winner of an ablation beside its control on seeds that had no part in the choice."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import slurm_options, storage_option, workers_options


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    slurm_options(parser)
    workers_options(parser, "how many fresh seeds")
    storage_option(parser)


COMMAND = Command(
    "confirm",
    "the winner beside its control on fresh seeds",
    "ablations.cli.confirm:run_confirm",
    options,
    study=True,
    checks=("declaration", "records"),
)
