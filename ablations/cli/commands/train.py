"""`ablate train`: train one run, or stages, from a configuration or preset."""

import argparse

from ablations.cli.command import Command
from ablations.cli.options import positive


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="a preset, or a YAML config, such as an exported one; or one with stages"
    )
    parser.add_argument("--dry-run", action="store_true", help="check shapes, schedule, data and layout; train nothing")
    parser.add_argument("--cluster", metavar="CLUSTER", help="with --dry-run: plan for it, such as 64xH100-80G")
    parser.add_argument("--stage", metavar="NAME", help="with stages: train up to this one")
    parser.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="one process each (trainer.strategy=deepspeed)"
    )


COMMAND = Command("train", options=options, settings=True, checks=("out",))
