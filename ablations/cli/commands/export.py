"""`ablate export`: write the winning arm as a configuration with its evidence, for another trainer, or a run's weights."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from core.registry import module_names


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arm", help="export this arm instead of the winner")
    parser.add_argument("--force", action="store_true", help="export an unconfirmed winner, marked as such")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="output folder (default: export/ beside the records; in the folder of a run one that is named after the format)",
    )
    trainers = [name.replace("_", "-") for name in module_names("sweeps.export.formats")]
    parser.add_argument(
        "--format",
        choices=("config", "hf", *trainers),
        default="config",
        help=f"hf: weights in the format of transformers; {', '.join(trainers)}: configuration of that trainer",
    )
    parser.add_argument("--target", metavar="PRESET|FILE", help="transfer the arm to it, such as llada_moe_7b_a1b")
    parser.add_argument("--cluster", metavar="CLUSTER", help="cluster to lay the target out for, such as 64xH100-80G")
    parser.add_argument("--tokens", metavar="N", help="training tokens of the target, such as 10T (default: its own)")
    parser.add_argument("--rule", metavar="NAME", help="rule of rescaling: compute (default), width, none")


COMMAND = Command("export", options=options, study=True, settings=True, checks=("records", "folder"))
