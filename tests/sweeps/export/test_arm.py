import hashlib
import json

import pytest

from core.config.loading import load
from core.errors import UserError
from core.records import run_record
from sweeps.export.arm import export
from tests.sweeps.trainers import quick

EVIDENCE = {"verdict": "better", "effect": -0.123456, "interval": [-0.2, -0.05], "p": 0.001}


@pytest.fixture
def trained(make_plan, tmp_path):
    plan = make_plan(seeds=(4, 2))
    written = [quick(run.config, tmp_path / run.run_hash, study=plan.study_field(run)) for run in plan.runs]
    return plan, written, tmp_path


def test_the_exported_config_is_the_arms_own(trained):
    plan, written, folder = trained
    arm = plan.design.arms[1].name
    export(plan.design, arm, [r for r in written if r.study["arm"] == arm], EVIDENCE, folder / "export")
    [expected] = [run.config for run in plan.runs if run.arm == arm and run.seed == 2]
    assert load(folder / "export" / "config.yaml") == expected


def test_the_evidence_can_be_checked_against_the_record_files(trained):
    plan, written, folder = trained
    arm = plan.design.control
    mine = [run_record.read(folder / r.run_hash / "record.json") for r in written if r.study["arm"] == arm]
    export(plan.design, arm, mine, EVIDENCE, folder / "export")
    told = json.loads((folder / "export" / "evidence.json").read_text())
    assert told["evidence"] == EVIDENCE
    assert told["seeds"] == [2, 4]
    for entry in told["records"]:
        content = (folder / entry["run_hash"] / "record.json").read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    card = (folder / "export" / "CARD.md").read_text()
    assert plan.design.question in card and "better" in card and "-0.1235" in card
    assert "| `objective.load_balancing_weight` | `0.01` |" in card


def test_what_cant_be_exported_is_refused(trained):
    plan, written, folder = trained
    with pytest.raises(UserError, match="unknown arm 'best': the arms are load_balancing_weight=0.01"):
        export(plan.design, "best", written, EVIDENCE, folder / "export")
    other = [r for r in written if r.study["arm"] != plan.design.control]
    with pytest.raises(UserError, match="no complete run"):
        export(plan.design, plan.design.control, other, EVIDENCE, folder / "export")
    assert not (folder / "export").exists()
