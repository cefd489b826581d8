"""`ablate probe routing`, as its user would call it, on runs that were trained for it."""

import json
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.cli import studies
from core.config.loading import build
from core.config.run import to_dict
from core.training.run import train
from sweeps.runs.folders import run_folder
from sweeps.studies.resolve import plan
from tests.ablations.test_run import DECLARATION
from tests.core.training.test_run import QUICK

TOLD = QUICK | {"model.router.kind": "timestep_only", "trainer.steps": 4, "trainer.validate_every": 0}
FEW = ("--sequences", "100", "--timesteps", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "told"
    assert train(build(TOLD), folder).status == "complete"
    return folder


def said(capsys, *arguments: str, status: int = 0) -> str:
    assert main(["probe", "routing", *arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_a_run_is_probed_beside_its_record(run, capsys) -> None:
    before = (run / "record.json").read_bytes()
    shown = said(capsys, str(run), *FEW)
    assert "timestep_only, seed 0: 100 held-out sequences of markov, 4 timesteps" in shown
    assert "crossed" in shown and "routed as half the timesteps away: NELBO" in shown and "told the timestep" in shown
    assert (run / "record.json").read_bytes() == before
    content = json.loads((run / "probe.json").read_text())
    assert [row["layer"] for row in content["crossed"]] == [row["layer"] for row in content["plain"]] == [0, 1]
    assert all(row["adjusted"] == 0.001 for row in content["crossed"])
    shares = content["expert_share"]
    assert len(shares) == 2 and len(shares[0]) == 4 and len(shares[0][0]) == 2
    assert sum(shares[1][3][1]) == pytest.approx(1, abs=1e-4)
    assert (
        shares[0][0][0] == shares[0][0][1] or max(shares[0][0][0]) == 0.5
    )  # by the timestep alone: two experts for all
    assert content["told"]["low"] < content["told"]["mean"] < content["told"]["high"]


def test_a_probe_is_computed_once_for_the_same_question(run, capsys) -> None:
    first = json.loads(said(capsys, str(run), *FEW, "--json"))
    left = (run / "probe.json").stat().st_mtime_ns
    assert json.loads(said(capsys, str(run), *FEW, "--json")) == first
    assert (run / "probe.json").stat().st_mtime_ns == left
    (run / "probe.json").write_text("{broken")
    assert json.loads(said(capsys, str(run), *FEW, "--json")) == first
    other = json.loads(said(capsys, str(run), "--sequences", "100", "--timesteps", "5", "--json"))
    assert other["timesteps"] == 5 and len(other["expert_share"][0]) == 5
    hmm = json.loads(said(capsys, str(run), *FEW, "--json", "data.corpus=hmm"))
    assert hmm["data"] == "hmm" and hmm["nelbo"] != first["nelbo"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--sequences", "99"), "at least 100"),
        (("--sequences", "100", "--timesteps", "60"), "must lie in 2..50"),
        (("--timesteps", "1"), "must lie in 2..64"),
        (("--sequences", "1000000"), "holds out only"),
        (("model.top_k=1",), "model.top_k: a probe sees a run as it was trained"),
        (("data.corpus=nonsense",), "data.corpus='nonsense' is unknown"),
    ],
)
def test_what_cannot_be_probed_is_one_line(run, capsys, arguments, expected: str) -> None:
    error = said(capsys, str(run), *arguments, status=2)
    assert expected in error and len(error.strip().splitlines()) == 1


def test_a_folder_without_weights_or_config_says_what_would_be_right(tmp_path, capsys) -> None:
    assert "ablate import hf" in said(capsys, str(tmp_path), status=2)
    (tmp_path / "config.yaml").write_text("{}")
    error = said(capsys, str(tmp_path), status=2)
    assert "no model.safetensors" in error and "every finished run leaves its weights" in error
    assert "did you mean balance" in said(capsys, "balanse", status=2)
    assert "nothing is recorded" in said(capsys, "balance", "--out", str(tmp_path), status=2)


def test_an_imported_model_is_probed_like_a_run(tmp_path, capsys) -> None:
    assert train(build(QUICK, {"trainer.steps": 2}), tmp_path / "run").status == "complete"
    assert main(["export", str(tmp_path / "run"), "--format", "hf"]) == 0
    assert main(["import", "hf", str(tmp_path / "run" / "hf"), "--to", str(tmp_path / "back")]) == 0
    capsys.readouterr()
    data = [
        f"data.{key}={value}"
        for key, value in to_dict(build(QUICK))["data"].items()
        if "length" in key or key == "corpus"
    ]
    own, back = (json.loads(said(capsys, str(tmp_path / name), *FEW, "--json", *data)) for name in ("run", "back"))
    assert back["crossed"] == own["crossed"] and back["nelbo"] == pytest.approx(own["nelbo"]) and back["told"] is None


def test_an_ablation_is_a_row_for_each_arm(tmp_path, capsys) -> None:
    text = DECLARATION.replace('"model.top_k", (1, 2), label="top-k"', '"model.router.kind", ("topk", "timestep_only")')
    (tmp_path / "toy.py").write_text(
        text.replace('"model.top_k": 1', '"model.router.kind": "topk"').replace("range(3)", "range(2)")
    )
    planned = plan(*studies.resolve(str(tmp_path / "toy.py")))
    for one in planned.runs:
        train(one.config, run_folder(planned, one, tmp_path / "runs"), study=planned.study_field(one))
    out = ("--out", str(tmp_path / "runs"))
    records = {path: path.read_bytes() for path in tmp_path.rglob("record.json")}
    next((tmp_path / "runs" / "toy").glob("kind=topk/seed-1-*/model.safetensors")).unlink()
    shown = said(capsys, str(tmp_path / "toy.py"), *out, *FEW)
    assert "2 of 2" in shown and "seed 1" in shown and "no model.safetensors" in shown
    rows = json.loads(said(capsys, str(tmp_path / "toy.py"), *out, *FEW, "--json"))
    assert [(row["label"], len(row["runs"]), len(row["notes"])) for row in rows] == [
        ("kind topk", 1, 1), ("kind timestep_only", 2, 0),
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in tmp_path.rglob("record.json")} == records
    assert len(list(tmp_path.rglob("probe.json"))) == 3
    main(["verify", str(tmp_path / "toy.py"), *out])
    found = capsys.readouterr().out
    assert "model.safetensors is gone" in found and "probe" not in found  # a probe beside a record is no finding
