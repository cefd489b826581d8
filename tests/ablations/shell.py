"""`ablate` for tests: in this process, as starting it anew takes most of the time; and as a process, as its user runs it."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from ablations.__main__ import main
from tests.forked import start

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"WANDB_MODE": "disabled", "COLUMNS": "100"}


def ablate(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in this process, with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, ENVIRONMENT),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main(arguments)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def process(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ablations", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def forked(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process whose imports were done before."""
    started = start("ablations.__main__", *arguments, cwd=cwd, log=cwd / "stderr.txt", **ENVIRONMENT)
    out, err = started.communicate()
    return subprocess.CompletedProcess(arguments, started.wait(), out, err)


def mistake(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """That a command was refused in one line, which says these."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ablate: "), done.stderr
    for text in expected:
        assert text in lines[0]
