"""COMMANDS: the commands of `ablate`, one for each file of this folder; others are added by `register`."""

import importlib
import pkgutil

from ablations.cli.command import Command

ORDER = (
    "list",
    "plan",
    "run",
    "decode",
    "status",
    "cancel",
    "retry",
    "confirm",
    "report",
    "verify",
    "export",
    "dashboard",
    "sync",
    "train",
    "probe",
    "sample",
    "bench",
    "import",
    "data",
    "describe",
    "layout",
    "storage",
    "doctor",
)  # fmt: skip  (in `ablate --help`; others follow by name)
COMMANDS: dict[str, Command] = {}


def register(command: Command) -> None:
    """Add a command. Raises ValueError where another has its name."""
    if COMMANDS.setdefault(command.name, command) is not command:
        raise ValueError(f"there are two commands '{command.name}'")


def ordered() -> list[Command]:
    """The commands as `ablate --help` lists them."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(COMMANDS.values(), key=lambda command: (place.get(command.name, len(ORDER)), command.name))


def find() -> None:
    """Register the commands of this folder's files."""
    for module in pkgutil.iter_modules(__path__):
        register(importlib.import_module(f"{__name__}.{module.name}").COMMAND)


find()
