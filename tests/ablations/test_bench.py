"""`ablate bench sampling`, as its user would call it."""

import json

import pytest

from ablations.__main__ import main
from core.config.loading import build
from core.model.transformer import Denoiser, initialise
from core.probes.likelihood import Continued, log_likelihoods
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


@pytest.fixture(scope="module")
def task_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "task"
    settings = {"data.corpus": "task:modular", "objective.kind": "sft", "trainer.steps": 2, "trainer.validate_every": 0}
    assert train(build(QUICK, settings), folder).status == "complete"
    return folder


def test_answers_are_compared_prompt_by_prompt(task_run, capsys) -> None:
    arguments = ["bench", "tasks", str(task_run), "--count", "20", "--block-length", "1", "64", "--json"]
    assert main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["task"] == "modular" and content["length"] == 2
    rows = {row["decoding"]: row for row in content["rows"]}
    assert rows["one token a call"]["nfe"] == 2 and rows["one token a call"]["adjusted"] is None
    assert rows["low_confidence, blocks of 2, 2 tokens a call"]["tokens_per_call"] == 2
    assert set(rows) == {
        "one token a call", "low_confidence, blocks of 1, 1 tokens a call", "low_confidence, blocks of 2, 2 tokens a call",
        *(f"threshold {p}, blocks of {size}" for p in (0.95, 0.9) for size in (1, 2)),
    }  # fmt: skip
    assert all(row["low"] <= row["exact_match"] <= row["high"] for row in rows.values())


def test_answers_of_no_task_or_too_many_are_one_line(task_run, run, capsys) -> None:
    assert main(["bench", "tasks", str(run)]) == 2
    assert "data.corpus=markov is no task" in capsys.readouterr().err
    assert main(["bench", "tasks", str(task_run), "--count", "9999"]) == 2
    assert "so ask for 1 to 2000" in capsys.readouterr().err


def test_text_is_judged_beside_the_text_that_was_there(run, capsys) -> None:
    arguments = ["bench", "text", str(run), "--count", "8", "--prompt-length", "8", "--block-length", "8", "--json"]
    assert main([*arguments, "--remasking", "random", "entropy", "--tokens-per-call", "4"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["samples"] == 8 and content["length"] == 24
    real, *made = content["rows"]
    assert [row["decoding"] for row in made] == [
        f"{rule}, blocks of 8, 4 tokens a call" for rule in ("random", "entropy")
    ]
    assert all(row["ngram_nats"] > real["ngram_nats"] + 1 and row["tokens_per_call"] == 4 for row in made)  # untaught
    assert all(row["copied"] < real["copied"] for row in made)


def test_right_responses_are_compared_with_ones_that_are_wrong_by_a_symbol(task_run, capsys) -> None:
    arguments = ["bench", "pairs", str(task_run), "--count", "12", "--draws", "4"]
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["task"] == "modular" and content["pairs"] == 12
    assert content["low"] <= content["preferred"] <= content["high"] and 0 <= content["uncertain"] <= 12
    assert main(arguments) == 0 and "wrong by a symbol in" in capsys.readouterr().out


def test_a_causal_model_can_be_the_judge(tmp_path, capsys) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be, that is the question\n" * 400)
    text = {"data.corpus": f"text:{tmp_path / 'a.txt'}", "trainer.steps": 2, "trainer.validate_every": 0}
    causal = {"model.causal": True, "objective.kind": "autoregressive"}
    for name, changes in (("masked", {}), ("causal", causal)):
        assert train(build(QUICK, text, changes), tmp_path / name).status == "complete"
    asked = "--count 4 --prompt-length 8 --block-length 8"
    arguments = ["bench", "text", str(tmp_path / "masked"), *asked.split()]
    assert main([*arguments, "--judge", str(tmp_path / "causal"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(5 < row["judge_bits_per_byte"] < 12 for row in rows)  # untaught: about log2 of its vocabulary
    assert main([*arguments, "--judge", str(tmp_path / "causal")]) == 0
    assert "bits/byte" in capsys.readouterr().out  # its head, in lines where 80 columns are narrow
    assert main([*arguments, "--judge", str(tmp_path / "masked")]) == 2
    assert "sees both sides" in capsys.readouterr().err


def test_a_continuation_costs_what_its_tokens_cost(tmp_path) -> None:
    config = build(QUICK, {"model.causal": True, "objective.kind": "autoregressive"})
    judge = Denoiser(config.model)
    initialise(judge, 0)
    asked = [Continued([], [5, 6, 7]), Continued([5, 6], [7]), Continued([], [5, 6]), Continued([5], [])]
    whole, last, first, nothing = (found.log_p for found in log_likelihoods(judge, asked))
    assert whole == pytest.approx(first + last, rel=1e-5) and nothing == 0
