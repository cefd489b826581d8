"""`ablate dashboard --wandb`: what is really saved, against a W&B of a few answers on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.studies.resolve import plan
from tests.ablations.shell import ROOT, ablate, mistake
from tests.ablations.test_export import DECLARATION, leave_records
from tests.sweeps.conftest import declare
from tests.sweeps.wandb_site import serving

TWICE = "import sys; from ablations.__main__ import main; sys.exit(main(sys.argv[1:]) or main(sys.argv[1:]))"


@pytest.fixture
def swept(tmp_path) -> Path:
    (tmp_path / "toy.py").write_text(DECLARATION)
    leave_records(plan("toy", declare(seeds=range(5))), tmp_path / "runs", 10.0)
    return tmp_path


def test_a_workspace_and_a_report_are_saved_once_and_the_same_ones_again(swept) -> None:
    with serving() as site:
        environment = os.environ | {"WANDB_BASE_URL": site.url, "WANDB_API_KEY": "k" * 40, "PYTHONPATH": str(ROOT)}
        environment.pop("WANDB_MODE", None)
        done = subprocess.run(
            [sys.executable, "-c", TWICE, "dashboard", "toy.py", "--wandb", "me/proj"],
            cwd=swept, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "k" * 40 not in done.stdout + done.stderr and site.projects == ["proj"]
    assert len(site.views) == 2  # the second call changed what the first had saved
    kept = json.loads((swept / "runs" / "toy" / "dashboard.json").read_text())
    view, report = (json.loads(site.views[kept[name]]["spec"]) for name in ("workspace_id", "report_id"))
    sections = {section["name"]: section for section in view["section"]["panelBankConfig"]["sections"]}
    assert list(sections)[:4] == ["Loss", "Routing", "Factors", "Failed runs"]
    loss = sections["Loss"]["panels"][0]["config"]
    assert loss["metrics"] == ["val/nelbo"] and (loss["groupAgg"], loss["groupArea"]) == ("mean", "stddev")
    kinds = {panel["viewType"] for section in sections.values() for panel in section["panels"]}
    assert {"Parallel Coordinates Plot", "Parameter Importance", "Media Browser"} <= kinds
    assert "toy" in json.dumps(view["section"]["runSets"][0]["filters"])
    text = json.dumps(report)
    assert "Does the load-balancing loss lower the NELBO?" in text and "better than the control" in text
    assert '"failed", "crashed"' in text and "| " in text


def test_mistakes_are_one_line(swept) -> None:
    mistake(ablate("dashboard", "toy.py", "--wandb", "me/proj", "--port", "8123", cwd=swept), "--port", "--wandb")
    mistake(ablate("dashboard", "toy.py", "--json", cwd=swept), "--json is for --wandb")
    mistake(ablate("dashboard", "toy.py", "--wandb", "mine", cwd=swept), "must be ENTITY/PROJECT", "not 'mine'")


def test_a_port_that_cant_be_had_is_a_mistake(swept) -> None:
    asked = ("dashboard", "toy.py", "--port")
    mistake(ablate(*asked, "80000", cwd=swept), "--port must be 1 to 65535, not 80000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        mistake(ablate(*asked, port, cwd=swept), f"--port {port}: Address already in use")


def test_a_word_cut_short_is_no_option() -> None:
    mistake(ablate("plan", "balance", "--siz", "quick"), "--siz")
