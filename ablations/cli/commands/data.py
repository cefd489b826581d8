"""`ablate data`: fetch text, and turn text into token shards."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import positive, share


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=("get", "tokenize"), metavar="get|tokenize", help="what to do")
    parser.add_argument("name", metavar="NAME", help="get: shakespeare; tokenize: a text corpus, such as text:FOLDER")
    parser.add_argument("--vocab-size", type=positive, default=8192, metavar="N", help="of the BPE (default: 8192)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="of the shards (default: DIR/tokens/CORPUS-N)")
    parser.add_argument(
        "--held-out-share", type=share, metavar="X", help="of the data (default: by files' names, else about 0.1)"
    )


COMMAND = Command(
    "data",
    "fetch text; turn text into token shards",
    "ablations.cli.data:run_data",
    options,
    usage="data get NAME | ablate data tokenize CORPUS [options]",
    checks=("out",),
)
