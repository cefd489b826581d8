"""Types of options, and options that several commands have."""

import argparse
import math
import re
from collections.abc import Sequence

from core.errors import UserError
from core.runtime.units import NUMERAL

MOST_DIGITS = 15  # of a number on the command line


def number(text: str) -> float:
    """A finite number on the command line, written in digits."""
    if NUMERAL.fullmatch(text) is None or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a finite number, such as 0.5 or 1e-3")
    return float(text)


def whole(text: str) -> int:
    """A whole number on the command line; its range is the command's to check."""
    if re.fullmatch(r"[-+]?(0|[1-9]\d*)", text, re.ASCII) is None or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a whole number of at most {MOST_DIGITS} digits")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on, on the command line."""
    if re.fullmatch(r"[1-9]\d*", text, re.ASCII) is None or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(
            f"'{_shown(text)}' is not a whole number from 1 on, of at most {MOST_DIGITS} digits"
        )
    return int(text)


def share(text: str) -> float:
    """A share between 0 and 1, on the command line."""
    if not 0 < (found := number(text)) < 1:
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a share between 0 and 1, such as 0.1")
    return found


def workers(text: str) -> int | str:
    """A number of processes, or "auto"."""
    return text if text == "auto" else positive(text)


def _shown(text: str) -> str:
    return text if len(text) <= MOST_DIGITS else f"{text[:MOST_DIGITS]} ..."


def exploratory_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exploratory", action="store_true", help="accept a design that can't reach significance")


def workers_options(parser: argparse.ArgumentParser, seeds: str = "seeds 0..N-1 instead of the declared ones") -> None:
    """Add --workers and --seeds. seeds: the help of the latter."""
    parser.add_argument(
        "--workers", type=workers, metavar="N|auto", help="processes (default: one per GPU or core; auto: as measured)"
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help=seeds)


def storage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", metavar="URL", help="Optuna storage (default: $ABLATE_STORAGE, or a journal)")


def slurm_options(parser: argparse.ArgumentParser) -> None:
    """Add the launcher and the options of Slurm."""
    parser.add_argument(
        "--launcher", choices=("local", "slurm"), default="local", help="where workers run (default: on this machine)"
    )
    group = parser.add_argument_group(
        "with --launcher slurm (defaults: ~/.config/ablate/slurm.toml, or $ABLATE_CONFIG)"
    )
    for name in ("partition", "account", "qos"):
        group.add_argument(f"--{name}", metavar=name[0].upper(), help=f"Slurm's {name}")
    group.add_argument("--time", metavar="LIMIT", help="time limit of an array task, such as 4h, 90m or 1-12:00:00")
    group.add_argument(
        "--gpus-per-run",
        type=whole,
        metavar="N",
        help="GPUs of an array task (default: one where the partition has GPUs)",
    )
    group.add_argument("--cpus-per-run", type=whole, metavar="N", help="CPUs of each array task (default: Slurm's)")
    group.add_argument(
        "--array-parallelism", type=whole, metavar="N", help="largest number of array tasks (default: 64)"
    )
    group.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", help="any other option of sbatch; may be repeated"
    )
    group.add_argument("--dry-run", action="store_true", help="print the batch script; nothing is submitted or written")


def check_lists(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options of a grid that are below 1."""
    for name in names:
        if min(getattr(arguments, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {min(getattr(arguments, name))}")
