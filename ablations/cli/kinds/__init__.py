"""Commands by kind of study: ablations/cli/kinds/KIND/COMMAND.py carries a command out where it is there, else
ablations/cli/COMMAND.py does, which treats a study as arms, each trained on seeds."""

import importlib
from importlib.util import find_spec
from types import ModuleType


def module_of(kind: str, command: str) -> ModuleType:
    """The module that carries out a command for a kind of study; an empty kind has none of its own."""
    own = f"{__name__}.{kind}"
    found = kind and find_spec(own) and find_spec(f"{own}.{command}")
    return importlib.import_module(f"{own}.{command}" if found else f"ablations.cli.{command}")
