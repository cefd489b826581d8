"""`ablate describe`: print parameters, FLOPs and shapes of a configuration."""

import argparse

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a preset, such as llada_moe_7b_a1b, or a YAML config")


COMMAND = Command("describe", options=options, settings=True, json=True)
