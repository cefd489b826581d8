"""Commands by kind of study: ablations/cli/kinds/KIND/COMMAND.py carries a command out where it is there, else
ablations/cli/COMMAND.py does, which treats a study as arms, each trained on seeds."""

import importlib
from importlib.util import find_spec
from types import ModuleType


def module_of(kind: str, command: str) -> ModuleType:
    """The module that carries out a command for a kind of study."""
    own = f"{__name__}.{kind}"
    name = f"{own}.{command}" if find_spec(own) and find_spec(f"{own}.{command}") else f"ablations.cli.{command}"
    return importlib.import_module(name)
