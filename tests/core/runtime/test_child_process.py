"""Processes that are started where the user's own files have the names of our packages, or of libraries."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.loading import build
from core.runtime.child_process import BRIEF_SPINNING, SOURCE_ROOT, import_here, import_path, module_command
from core.runtime.forking import Template
from sweeps.runs.packing import Share, time_side_by_side

PACKAGES = ("core", "sweeps", "analysis")  # and `ablations`, which `python -m ablations` would run itself
SMALL = {"data.corpus": "markov", "data.sequence_length": 8, "data.validation_sequences": 8, "model.num_layers": 1}


@pytest.fixture
def crowded(tmp_path, monkeypatch) -> Path:
    """The current folder, with packages of our names, a module of a library's and folders that are none."""
    for name in (*PACKAGES, "torch", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of the user')")
    for name in ("wandb", "tests", "not_installed"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.py").write_text("import beside\n")
    (tmp_path / "beside.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    return tmp_path


def test_the_command_starts_beside_packages_of_its_names(crowded) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "ablations", "list", "--names"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(SOURCE_ROOT)})
    assert done.returncode == 0 and "balance quick" in done.stdout, done.stderr


def test_measuring_processes_start_beside_packages_of_their_names(crowded) -> None:
    assert time_side_by_side(build(SMALL), [Share((next(iter(os.sched_getaffinity(0))),))])


def test_every_process_of_ours_is_started_so(crowded) -> None:
    """`-m` with another path than ours first is how a user's `sweeps` was taken for ours."""
    (crowded / "ablations").mkdir()
    (crowded / "ablations" / "__init__.py").write_text("raise RuntimeError('not this one')")
    done = subprocess.run(
        module_command("ablations", "--version"), capture_output=True, text=True, env=os.environ | import_path()
    )
    assert done.returncode == 0, done.stderr
    calls = {
        f"{path.name}: {line.strip()}"
        for package in (*PACKAGES, "ablations")
        for path in (SOURCE_ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if ('"-m"' in line and "sys.executable" in line) or ("{python} -" in line and "{python} -P" not in line)
    }
    assert calls == {
        'child_process.py: return [sys.executable, "-P", "-m", name, *arguments]',
        # It is sent to other nodes by value, where it imports nothing of ours, and sets the path itself.
        'ray_actor.py: command = [sys.executable, "-P", "-m", own["module"], str(self._folder)]',
    }


def test_modules_of_the_current_folder_come_last_and_only_when_asked_for(crowded) -> None:
    import_here("core.errors")
    assert str(crowded) not in sys.path and importlib.util.find_spec("not_installed") is None
    assert Path(import_here("mine").__file__) == crowded / "mine.py" and "beside" in sys.modules
    assert sys.path[-1] == str(crowded)
    del sys.modules["mine"], sys.modules["beside"]


def test_threads_of_workers_spin_briefly_unless_the_user_says_otherwise(monkeypatch) -> None:
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    template = Template()
    template.start()
    try:
        entries = Path(f"/proc/{template._process.pid}/environ").read_text().split("\0")
    finally:
        template.close()
    assert f"GOMP_SPINCOUNT={BRIEF_SPINNING['GOMP_SPINCOUNT']}" in entries and "KMP_BLOCKTIME=7" in entries
