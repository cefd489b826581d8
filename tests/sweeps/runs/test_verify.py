"""A sweep that is really trained, then tampered with in every way that must be found."""

import json
import shutil
from dataclasses import replace

import pytest

from core.records import run_record
from core.records.run_record import RunRecord
from core.training.run import train
from sweeps.runs.folders import run_folder
from sweeps.runs.ledger import Ledger
from sweeps.runs.record_checks import Finding, Run, Verification, each, settled
from sweeps.runs.trials import by_run
from sweeps.runs.verify import verify
from sweeps.storage.storage import default_url, open_storage
from sweeps.studies.resolve import plan
from tests.sweeps.conftest import declare
from tests.sweeps.ledgers import opened
from tests.sweeps.trainers import overwrite


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out, planned = tmp_path_factory.mktemp("swept") / "out", plan("balance", declare())
    ledger = opened(planned, out)
    while (claim := ledger.claim()[0]) is not None:
        record = train(claim.run.config, claim.folder, study=planned.study_field(claim.run))
        clean = record.provenance | {"git_dirty": False, "git_diff_sha256": None}  # wherever these tests are run
        record = replace(record, provenance=clean)
        overwrite(record, claim.folder)
        ledger.finish(claim, record, {})
    run_record.write_atomically(out / "balance" / "design.json", json.dumps(planned.design.to_json()))
    return planned, out


@pytest.fixture
def sweep(swept, tmp_path):
    """A copy to tamper with: its folder, its records' folders, a way to change a record, and what is found."""
    planned, whole = swept
    out = tmp_path / "out"
    shutil.copytree(whole, out)

    class Sweep:
        folder = out / "balance"
        runs = [run_folder(planned, run, out) for run in planned.runs]

        @staticmethod
        def change(number, **fields):
            path = Sweep.runs[number] / "record.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | fields) + "\n")

        @staticmethod
        def record(number):
            return json.loads((Sweep.runs[number] / "record.json").read_text())

        @staticmethod
        def change_provenance(number, **fields):
            Sweep.change(number, provenance=Sweep.record(number)["provenance"] | fields)

        @staticmethod
        def find():
            found = verify(Sweep.folder, Sweep.told)
            return found, [str(finding) for finding in found.findings if not finding.note]

    ledger = Ledger(planned, out, open_storage(default_url(out)))
    Sweep.told = by_run(ledger._study.get_trials())
    return Sweep


def test_an_untouched_sweep_can_be_trusted(sweep):
    found, lines = sweep.find()
    assert lines == []
    assert found.trusted and (found.complete, found.failed, found.missing) == (4, 0, 0)
    assert found.findings == ()


def test_a_number_edited_by_hand_is_found(sweep):
    metrics = sweep.record(1)["metrics"]
    sweep.change(1, metrics=metrics | {"val/nelbo": metrics["val/nelbo"] - 0.5})
    found, lines = sweep.find()
    assert not found.trusted and len(lines) == 3
    assert all(line.startswith(f"{sweep.runs[1].parent.name}/{sweep.runs[1].name}: ") for line in lines)
    assert "isn't the last of its validations" in lines[0]
    assert "its record was changed since the ledger was told of it" in lines[1]
    assert "and the ledger says" in lines[2]


def test_an_edit_that_changes_no_number_is_found_too(sweep):
    sweep.change(1, wall_time_s=1.0)
    _, [line] = sweep.find()
    assert "its record was changed since the ledger was told of it" in line


def tamper_config(sweep):
    config = sweep.record(0)["config"]
    sweep.change(0, config=config | {"trainer": config["trainer"] | {"steps": 31}})


def tamper_copy(sweep):
    shutil.copytree(sweep.runs[0], sweep.runs[0].with_name("seed-9-copy"))


TAMPERINGS = {
    "doesn't hash to its run hash": tamper_config,
    "doesn't hash to its arm hash": tamper_config,
    "its seed 7 isn't its config's 0": lambda sweep: sweep.change(0, seed=7),
    "a foreign folder": tamper_copy,
    "recorded 2 times": tamper_copy,
    "model.safetensors isn't the file that was trained": lambda s: (s.runs[0] / "model.safetensors").write_bytes(b"x"),
    "model.safetensors is gone": lambda s: (s.runs[0] / "model.safetensors").unlink(),
    "not finite: val/nelbo": lambda s: s.change(0, metrics={"val/nelbo": None}),
    "columns of its curve differ in length": lambda s: s.change(0, curve={"step": [1, 2], "tokens": [1]}),
    "it is complete, and has no metrics": lambda s: s.change(0, metrics={}),
    "it failed, and doesn't say why": lambda s: s.change(0, status="failed", reason=None),
    "it is failed, and the ledger says otherwise": lambda s: s.change(0, status="failed", reason="diverged"),
    "its record can't be read": lambda s: (s.runs[0] / "record.json").write_text("{half"),
    "the ledger has its result, and its record is gone": lambda s: (s.runs[0] / "record.json").unlink(),
    "the ledger doesn't know it": lambda s: s.told.clear(),
    "design.json: can't be read": lambda s: (s.folder / "design.json").unlink(),
    "runs compared: of different commits": lambda s: s.change_provenance(0, git_commit="0" * 40),
    "runs compared: of different torch": lambda s: s.change_provenance(0, packages={"torch": "2.0.0"}),
    "1 run of changed code, and what was changed isn't known": lambda s: s.change_provenance(0, git_dirty=True),
    "diffs/abc.patch is missing": lambda s: s.change_provenance(0, git_dirty=True, git_diff_sha256="abc"),
}


@pytest.mark.parametrize("said", TAMPERINGS)
def test_tampering_is_found(sweep, said):
    TAMPERINGS[said](sweep)
    found, lines = sweep.find()
    assert not found.trusted
    assert [line for line in lines if said in line], lines


def test_data_that_differ_here_are_found_once_a_run(sweep, monkeypatch):
    monkeypatch.setattr("core.data.inputs.fingerprint", lambda config: "markov:other")
    _, lines = sweep.find()
    assert len(lines) == 4 and all("the data here are markov:other" in line for line in lines)


def test_a_patch_that_was_changed_is_found(sweep):
    digest = run_record.digest(b"diff")
    for number in range(4):
        sweep.change_provenance(number, git_dirty=True, git_diff_sha256=digest)
    sweep.told.clear()
    path = sweep.folder.parent / "diffs" / f"{digest}.patch"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"diff")
    assert not [line for line in sweep.find()[1] if "patch" in line]
    path.write_bytes(b"else")
    assert [line for line in sweep.find()[1] if "was changed" in line]


def test_records_of_a_former_design_are_a_note(sweep):
    design = json.loads((sweep.folder / "design.json").read_text())
    (sweep.folder / "design.json").write_text(json.dumps(design | {"seeds": [0]}))
    found, lines = sweep.find()
    assert lines == [] and found.trusted and (found.complete, found.missing) == (2, 0)
    assert [finding.text for finding in found.findings] == [
        "of another design than the one last run here: no report counts it"
    ] * 2


def test_what_is_wrong_while_a_sweep_goes_on_has_to_be_wrong_twice() -> None:
    """The ledger is read before the records: what came in between isn't known to it at the first look."""
    gone, new, note = (
        Finding("a", "changed"),
        Finding("b", "the ledger doesn't know it"),
        Finding("c", "old", note=True),
    )
    looks = iter([Verification(1, 0, 0, (gone, new)), Verification(2, 0, 0, (gone, note, Finding("d", "later")))])
    found = settled(lambda: next(looks))
    assert (found.complete, found.findings) == (2, (gone, note))
    assert settled(lambda: Verification(1, 0, 0, (note,))).trusted


def test_a_dense_run_has_no_expert_load_and_a_sparse_one_does(tmp_path) -> None:
    def said(experts: int) -> bool:
        config = {"seed": 0, "model": {"num_experts": experts}}
        record = RunRecord(
            "complete", "", "", 0, config, metrics={"val/nelbo": 1.0}, expert_load={"step": [1], "load": []}
        )
        return any("expert load" in text for text in each(Run(tmp_path / "record.json", b"", record)))

    assert said(8) and not said(0)
