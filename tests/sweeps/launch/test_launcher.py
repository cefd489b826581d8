"""The launcher of docs/extending.md, as the file that it is there."""

import argparse

import pytest

from ablations.cli.launching import check_flags
from ablations.cli.options import launcher_options
from core.errors import UserError
from sweeps.launch import launchers as package
from sweeps.launch.launcher import Order, launchers, tasks_of
from sweeps.runs.array_tasks import Task
from sweeps.runs.folders import pending
from tests.ablations.test_extending import block
from tests.sweeps import trainers


@pytest.fixture
def serial(tmp_path, monkeypatch):
    """The launcher, found by its name among ours."""
    (tmp_path / "serial.py").write_text(block("Launcher"))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr("core.training.run.train", trainers.quick)
    launchers.cache_clear()
    yield launchers()["serial"]
    launchers.cache_clear()


def test_a_launcher_is_one_file(serial, make_plan, tmp_path):
    plan, out = make_plan(), tmp_path / "out"
    done = serial.launch(plan, out, Order())
    assert (done.done, done.missing, done.failed) == (4, 0, 0) and pending(plan, out) == ()
    assert serial.launch(plan, out, Order()).reused == 4


def test_the_command_line_takes_it_and_refuses_the_options_of_others(serial):
    parser = argparse.ArgumentParser()
    launcher_options(parser)
    check_flags(parser.parse_args(["--launcher", "serial"]))
    with pytest.raises(UserError, match="--partition is an option of --launcher slurm"):
        check_flags(parser.parse_args(["--launcher", "serial", "--partition", "gpu"]))


def test_the_tasks_of_every_launcher_that_submitted_a_study_are_asked_for(serial, tmp_path, monkeypatch):
    task = Task("1", "0", "RUNNING", "None", 0, None, "n1", launcher="Serial")
    monkeypatch.setattr(serial, "here", False)
    monkeypatch.setattr(serial, "has", lambda study: study.name == "mine")
    monkeypatch.setattr(serial, "tasks", lambda study: [task], raising=False)
    assert tasks_of(tmp_path / "mine") == ((task,), None) and tasks_of(tmp_path / "other") == ((), None)

    def away(study):
        raise UserError("Serial doesn't answer")

    monkeypatch.setattr(serial, "tasks", away)
    assert tasks_of(tmp_path / "mine") == (None, "Serial doesn't answer")
