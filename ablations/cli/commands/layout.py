"""`ablate layout`: find the fastest layout on a cluster, and its cost."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import number


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a preset, such as llada_moe_7b_a1b, or a YAML config")
    parser.add_argument(
        "--cluster", required=True, metavar="COUNTxDEVICE", help="such as 64xH100-80G, 32xA100-40G/4, or a YAML file"
    )
    parser.add_argument("--tokens", metavar="N", help="training tokens, such as 10T (default: the config's)")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="RECORD",
        help="a finished run's folder or record, to scale predicted times by",
    )
    parser.add_argument("--as-is", action="store_true", help="evaluate the configuration's own layout only")
    parser.add_argument("--no-offload", action="store_true", help="keep all states on the devices")
    parser.add_argument("--across-nodes", action="store_true", help="allow expert parallelism over several nodes")
    parser.add_argument("--headroom", type=number, metavar="SHARE", help="free share of memory (default: 0.08)")
    parser.add_argument(
        "--imbalance", type=number, metavar="X", help="rows of the fullest device over the mean (default: 1.5)"
    )


COMMAND = Command(
    "layout",
    options=options,
    settings=True,
    json=True,
    usage="layout CONFIG --cluster 64xH100-80G [options] [key=value ...]",
)
