"""`ablate sample`: decode with a model and show tokens being fixed."""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import number, whole


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's, an imported or a Hugging Face model's folder"
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated; ░ is a mask (default: none)"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, or 'bytes' (default: the model's own)")
    parser.add_argument("--length", type=whole, metavar="N", help="tokens of the response (default: 128)")
    parser.add_argument("--block-length", type=whole, metavar="N", help="tokens per block (default: one block)")
    parser.add_argument("--steps", type=whole, metavar="N", help="network calls (default: one per token)")
    parser.add_argument("--remasking", metavar="RULE", help="low_confidence (default), random, entropy or margin")
    parser.add_argument("--threshold", type=number, metavar="P", help="fix tokens at least this probable, not --steps")
    parser.add_argument(
        "--low-threshold", type=number, metavar="P", help="and the best of each run at least this probable"
    )
    parser.add_argument("--temperature", type=number, metavar="T", help="temperature of the Gumbel noise (default: 0)")
    parser.add_argument("--cfg", type=number, metavar="W", help="scale of classifier-free guidance (default: 0)")
    parser.add_argument(
        "--cache", metavar="KIND", help="prefix or dual: keep keys and values outside the block (default: none)"
    )
    parser.add_argument("--seed", type=whole, metavar="N", help="seed of the noise (default: 0)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write which call fixed which token to a JSON file")


COMMAND = Command("sample", options=options, json=True, usage="sample MODEL [--prompt TEXT ...] [options]")
