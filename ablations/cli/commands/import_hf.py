"""`ablate import`: convert a Hugging Face model to a configuration and weights."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import whole


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("hf",), metavar="hf", help="Hugging Face safetensors with a config.json")
    parser.add_argument("path", type=Path, metavar="PATH", help="the model's folder")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="output folder (default: DIR/imported/NAME)")
    parser.add_argument("--mask-id", type=whole, metavar="N", help="mask token (default: the file's mask_token_id)")
    parser.add_argument("--eos-id", type=whole, metavar="N", help="end token (default: the file's eos_token_id)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="type of the stored weights (default: as they are)")


COMMAND = Command("import", options=options, checks=("out",), handler="ablations.cli.import_hf:run_import")
