"""`ablate status --watch` where people read it: on a terminal, in a log, and stopped by Ctrl-C."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from ablations.cli import status as following
from ablations.cli.terminal import console
from sweeps.runs import operations
from sweeps.runs.folders import write_design
from sweeps.runs.ledger import Ledger
from sweeps.runs.status import RunStatus, Status
from sweeps.storage.storage import choose_url, open_storage
from sweeps.studies.resolve import plan
from tests.ablations.shell import ROOT, ablate
from tests.sweeps.conftest import declare

# Without what tests declare with, which loads torch: `status` doesn't.
DECLARATION = """
from sweeps.spec import Ablation, Factor
factors = (Factor("objective.load_balancing_weight", (0.0, 0.01)),)
ablation = Ablation(question="?", base="tiny", factors=factors, control={factors[0].key: 0.01}, seeds=range(5))
"""
ARM = "objective.load_balancing_weight=0.01,objective.z_loss_weight=0.001"


def standing(*states: str) -> Status:
    progress = {"step": 12, "steps": 30, "seconds_left": 60.0}
    rows = tuple(RunStatus(arm=ARM, seed=n, state=state, **progress) for n, state in enumerate(states))
    return Status(study="toy", runs=rows, preempted=0, deaths=0, tasks=(), silence=None, seconds_left=None)


@pytest.fixture
def swept(tmp_path):
    """A study whose runs wait for a worker."""
    (tmp_path / "toy.py").write_text(DECLARATION)
    planned, out = plan("toy", declare(seeds=range(5))), tmp_path / "runs"
    write_design(out / "toy", planned.design)
    Ledger(planned, out, open_storage(choose_url(None, out, out / "toy"))).reconcile()
    return tmp_path


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("60", 60), ("wide", 80)])
def test_where_there_is_no_terminal_columns_are_said_or_eighty(monkeypatch, columns, width) -> None:
    monkeypatch.setattr("os.isatty", lambda number: False)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert console().width == width


def test_a_log_has_a_line_for_each_change_and_no_codes(swept, monkeypatch) -> None:
    looks = [standing("queued", "running"), standing("queued", "running"), standing("running", "finished")]
    looks.append(standing("finished", "finished"))
    monkeypatch.setattr(operations, "status", lambda *known, **asked: looks.pop(0))
    monkeypatch.setattr(following, "WATCH_S", 0.0)
    done = ablate("status", "toy.py", "--watch", cwd=swept)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "toy: 2 runs: 1 queued, 1 running",
        "toy: 2 runs: 1 running, 1 finished",
        "toy: 2 runs: 2 finished",
    ]


def test_ctrl_c_ends_the_watching_alone(swept, monkeypatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operations, "status", lambda *known, **asked: standing("running"))
    monkeypatch.setattr("ablations.cli.status.time.sleep", interrupted)
    done = ablate("status", "toy.py", "--watch", cwd=swept)
    assert (done.returncode, done.stderr) == (130, "ablate: no longer watched; the sweep goes on as it was\n")


def test_a_terminal_is_left_as_it_was(swept) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "ablations", "status", "toy.py", "--watch"]
    process = subprocess.Popen(
        command, cwd=swept, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown, stopped, until = b"", False, time.monotonic() + 300
    try:
        while time.monotonic() < until:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the last to write has ended
                break
            if b"10 queued" in shown and not stopped:
                process.send_signal(signal.SIGINT)
                stopped = True
        assert process.wait(120) == 130
    finally:
        process.kill()
        os.close(master)
    text = shown.decode()
    assert "toy: 10 runs: 10 queued" in text and "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert text.endswith("\rablate: no longer watched; the sweep goes on as it was\r\n"), repr(text[-300:])
    assert not any(f"\x1b[3{colour}m" in text for colour in range(8))
