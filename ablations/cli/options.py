"""Types of options, and options that several commands have."""

import argparse
import math
import re
from typing import Any

from core.errors import UserError
from core.runtime.units import NUMERAL
from sweeps.launch.launcher import Option, launchers

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


def launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add --launcher, and the options of each launcher as a group."""
    parser.add_argument(
        "--launcher", choices=tuple(launchers()), default="local", help="where workers run (default: on this machine)"
    )
    titles = {launcher.name: launcher.title for launcher in launchers().values()}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option, names in option_owners().items():
        if names not in groups:
            groups[names] = parser.add_argument_group(titles.get(names, f"with --launcher {names}"))
        groups[names].add_argument(f"--{option.name}", help=option.help, **_form(option))


def option_owners() -> dict[Option, str]:
    """The options of launchers, each once, with the names of those that have it: "ray or slurm"."""
    first: dict[str, Option] = {}
    names: dict[str, list[str]] = {}
    for launcher in launchers().values():
        for option in launcher.options:
            first.setdefault(option.name, option)
            names.setdefault(option.name, []).append(launcher.name)
    return {option: " or ".join(names[name]) for name, option in first.items()}


def _form(option: Option) -> dict[str, Any]:
    if option.kind == "flag":
        return {"action": "store_true"}
    form: dict[str, Any] = {"metavar": option.metavar}
    if option.kind == "whole":
        form["type"] = whole
    if option.kind == "many":
        form["action"] = "append"
    return form


def check_at_least(least: int, arguments: argparse.Namespace, *names: str) -> None:
    """Refuse options below `least`, of several values the smallest; one that wasn't given is None."""
    for name in names:
        value = getattr(arguments, name)
        smallest = min(value) if isinstance(value, list) else value
        if smallest is not None and smallest < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {smallest}")
