"""The registry of commands: each has a handler, and finding them imports nothing that takes time."""

import subprocess
import sys

import pytest

from ablations.cli.command import Command
from ablations.cli.commands import COMMANDS, ORDER, ordered, register
from core.runtime.child_process import import_path
from sweeps.studies.study import STUDY_KINDS

HEAVY = ("omegaconf", "numpy", "rich", "optuna", "scipy", "torch", "wandb", "email", "subprocess")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_handler_for_every_kind_of_study(name) -> None:
    for kind in ("", *STUDY_KINDS, "a kind without files of its own"):
        assert callable(COMMANDS[name].handler_for(kind))


def test_finding_commands_imports_nothing_heavy() -> None:
    code = f"import sys, ablations.__main__; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=import_path(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_commands_have_names_of_their_own_and_the_order_names_no_other() -> None:
    assert set(ORDER) <= set(COMMANDS)
    assert [command.name for command in ordered()][: len(ORDER)] == list(ORDER)
    with pytest.raises(ValueError, match="two commands 'list'"):
        register(Command("list", "another"))
