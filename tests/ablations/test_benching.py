"""`ablate bench sampling`, as its user would call it."""

import json

import pytest

from ablations.__main__ import main
from core.settings import build
from core.training.run import train
from tests.core.training.test_run import QUICK

FEW = ("--length", "8", "--block-length", "4", "--batch", "2", "--tokens-per-call", "2", "--rounds", "1")


def said(capsys, *arguments: object, status: int = 0) -> str:
    assert main(["bench", "sampling", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(build(QUICK, {"trainer.steps": 2, "trainer.validate_every": 0}), folder).status == "complete"
    return folder


def test_every_cell_has_a_row_for_each_contestant(run, capsys) -> None:
    content = json.loads(said(capsys, run, *FEW, "--prompt-length", 4, "--json"))
    assert len(content["costs"]) == 7 and len(content["errors"]) == 2
    assert content["model"]["active"] < content["model"]["total"]
    for row in content["costs"]:
        over = row["over_recomputation"]
        assert over["low"] <= over["median"] <= over["high"] and row["peak_bytes"] > 0
        assert row["contestant"] != "none" or over["median"] == 1
        assert row["ms_per_token"]["median"] * row["tokens_per_second"]["median"] == pytest.approx(1000)
    shown = said(capsys, run, *FEW, "--prompt-length", 4)
    assert "length 8, blocks of 4, batch 2, 2 tokens a call" in shown and "LLaDA's loop" in shown
    assert "dual: predictions move by" in shown and "of the decoded tokens are those without a cache" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--block-length", "3"), "block_length=3 doesn't divide length=128"),
        (("--batch", "0"), "--batch must be at least 1, not 0"),
        (("--prompt-length", "33"), "--prompt-length 33 exceeds data.sequence_length=32"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--threshold", "2"), "threshold=2.0 must lie in (0, 1]"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run, capsys, arguments, expected: str) -> None:
    error = said(capsys, run, *arguments, status=2)
    assert expected in error and len(error.strip().splitlines()) == 1
