"""`ablate probe`: measure routing by timestep, or the NELBO at other lengths."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import positive


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", choices=("routing", "lengths"), metavar="WHAT", help="routing by timestep; NELBO at other lengths"
    )
    parser.add_argument("name", metavar="RUN|NAME", help="a run's or imported model's folder, or a recorded ablation")
    parser.add_argument("--size", metavar="SIZE", help="a declared size of the study (default: full)")
    parser.add_argument(
        "--sequences", type=positive, default=128, metavar="N", help="held-out sequences (default: 128)"
    )
    parser.add_argument("--timesteps", type=positive, default=8, metavar="N", help="per sequence (default: 8)")
    parser.add_argument(
        "--lengths",
        type=positive,
        nargs="+",
        metavar="N",
        help="sequence lengths (default: doubling from 8 to twice the training length)",
    )


COMMAND = Command(
    "probe",
    options=options,
    settings=True,
    json=True,
    usage="probe routing|lengths RUN|NAME [options] [data.key=value ...]",
    checks=("folder",),
)
