"""COMMANDS: the commands of `ablate`, one for each file of this folder; others are added by `register`."""

import importlib
import pkgutil
from dataclasses import replace

from ablations.cli.command import Command

# In `ablate --help`; others follow by name.
ORDER = (
    "list", "plan", "run", "decode", "status", "cancel", "retry", "confirm", "report", "verify", "export", "dashboard",
    "sync", "train", "probe", "sample", "bench", "import", "data", "describe", "layout", "storage", "doctor",
)  # fmt: skip
COMMANDS: dict[str, Command] = {}


def register(command: Command) -> None:
    """Add a command. Raises ValueError where another has its name."""
    if COMMANDS.setdefault(command.name, command) != command:
        raise ValueError(f"there are two commands '{command.name}'")


def ordered() -> list[Command]:
    """The commands as `ablate --help` lists them."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(COMMANDS.values(), key=lambda command: (place.get(command.name, len(ORDER)), command.name))


def find() -> None:
    """Register the commands of this folder's files."""
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        command: Command = module.COMMAND
        first = (module.__doc__ or "").partition("\n")[0]
        register(command if command.help else replace(command, help=first.partition("`: ")[2].removesuffix(".")))


find()
