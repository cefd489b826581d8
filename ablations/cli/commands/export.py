"""`ablate export`: the winning arm as a config with its evidence, or its weights."""

import argparse
from pathlib import Path

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arm", help="export this arm instead of the winner")
    parser.add_argument("--force", action="store_true", help="a winner before it is confirmed, marked so")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to (default: export/ beside the records; hf/ in the folder of a run)",
    )
    parser.add_argument(
        "--format", choices=("config", "hf"), default="config", help="hf: trained weights, as transformers reads them"
    )
    parser.add_argument("--target", metavar="PRESET|FILE", help="carry the arm to this model, such as llada_moe_7b_a1b")
    parser.add_argument("--cluster", metavar="CLUSTER", help="that the target is laid out for, such as 64xH100-80G")
    parser.add_argument("--tokens", metavar="N", help="that the target is trained on, such as 10T (default: its own)")
    parser.add_argument("--rule", metavar="NAME", help="of rescaling: compute (default), width, none")


COMMAND = Command(
    "export",
    "the winning arm as a config with its evidence, or its weights",
    "ablations.cli.export:run_export",
    options,
    study=True,
    settings=True,
    by_kind=True,
    checks=("declaration", "records", "folder"),
)
