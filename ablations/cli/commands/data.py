"""`ablate data`: download text, or tokenise text into shards."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import positive, share


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=("get", "tokenize"), metavar="get|tokenize", help="download, or write shards")
    parser.add_argument("name", metavar="NAME", help="get: shakespeare; tokenize: a text corpus, such as text:FOLDER")
    parser.add_argument(
        "--vocab-size", type=positive, default=8192, metavar="N", help="size of the BPE (default: 8192)"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="folder of the shards (default: DIR/tokens/CORPUS-N)")
    parser.add_argument(
        "--held-out-share", type=share, metavar="X", help="share to hold out (default: by file names, else about 0.1)"
    )


COMMAND = Command(
    "data", options=options, usage="data get NAME | ablate data tokenize CORPUS [options]", checks=("out",)
)
