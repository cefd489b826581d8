"""`ablate import`: a Hugging Face model as a config and weights."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import whole


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("hf",), metavar="hf", help="Hugging Face safetensors with a config.json")
    parser.add_argument("path", type=Path, metavar="PATH", help="its folder")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to (default: DIR/imported/NAME)")
    parser.add_argument(
        "--mask-id", type=whole, metavar="N", help="the mask's token (default: the file's mask_token_id)"
    )
    parser.add_argument("--eos-id", type=whole, metavar="N", help="the end token (default: the file's eos_token_id)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="store the weights so (default: as they are)")


COMMAND = Command(
    "import",
    "a Hugging Face model as a config and weights",
    "ablations.cli.import_hf:run_import",
    options,
    checks=("out",),
)
