"""`ablate describe`: parameters, FLOPs and shapes of a config, counted without allocating it."""

import argparse

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a preset, such as llada_moe_7b_a1b, or a YAML config")


COMMAND = Command(
    "describe",
    "parameters, FLOPs and shapes of a config",
    "ablations.cli.describe:run_describe",
    options,
    settings=True,
    json=True,
)
