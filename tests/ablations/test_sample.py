"""`ablate sample`, as its user would call it, on models that were trained or written for it."""

import json
import math
from pathlib import Path

import pytest
import torch

from ablations.__main__ import main
from ablations.cli.models import open_model
from core.config.loading import build
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.interchange.huggingface import save
from core.training.run import train
from core.training.weights import open_run
from tests.ablations.shell import ablate, mistake
from tests.core.training.test_run import QUICK

TEXT = QUICK | {
    "data.corpus": "stdlib",
    "trainer.steps": 3,
    "trainer.validate_every": 0,
    "data.validation_sequences": 8,
}
AR = {"model.causal": True, "objective.kind": "autoregressive"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "text"
    assert train(build(TEXT), folder).status == "complete"
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "causal"
    assert train(build(TEXT, AR), folder).status == "complete"
    return folder


def said(capsys, *arguments: object, status: int = 0) -> str:
    assert main(["sample", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_a_response_a_line_for_each_block_and_a_trace(run, tmp_path, capsys) -> None:
    trace = tmp_path / "new" / "trace.json"
    prompts = ("--prompt", "def ", "--prompt", "x")
    shown = said(capsys, run, *prompts, *["--length", "16", "--block-length", "8", "--steps", "4", "--trace"], trace)
    assert shown.startswith("block 1: 16 of 32 tokens in 2 calls\nblock 2: 32 of 32 tokens in 4 calls\ndef ")
    assert "32 tokens, 8 network calls, 4.00 tokens a call" in shown and f"trace: {trace}" in shown
    content = json.loads(trace.read_text())
    first = content["traces"][0]
    assert len(first["tokens"]) == len(first["text"]) == len(first["step"]) == len(first["confidence"]) == 20
    assert first["text"][:4] == list("def ") and first["step"][:4] == [-1] * 4 and first["confidence"][0] is None
    assert sorted(first["step"][4:12]) == [0] * 4 + [1] * 4 and sorted(first["step"][12:]) == [2] * 4 + [3] * 4
    assert content["settings"]["block_length"] == 8 and content["sequences"][1]["text"].startswith("x")


def test_json_is_the_same_for_the_same_seed(run, capsys) -> None:
    arguments = (run, "--length", 12, "--temperature", 1, "--json", "--remasking", "random")
    first, again, other = (json.loads(said(capsys, *arguments, "--seed", seed)) for seed in (0, 0, 1))
    assert first["sequences"] == again["sequences"] != other["sequences"]
    assert first["tokens"] == 12 and first["tokens_per_call"] == 1 and first["tokens_per_second"] > 0
    assert set(first["sequences"][0]["anomalies"]) >= {"repeats", "stuck", "repetition"}


def test_masks_in_a_prompt_are_filled_and_nothing_is_added(run, capsys) -> None:
    content = json.loads(said(capsys, run, "--prompt", "a░░d", "--json"))
    assert content["tokens"] == 2 and content["settings"]["length"] == 0
    text = content["sequences"][0]["text"]
    assert text[0] == "a" and "░" not in text


def test_caches_thresholds_and_guidance_reach_the_sampler(run, capsys) -> None:
    options = "--length 16 --block-length 8 --cache dual --threshold 0.001 --cfg 1 --json"
    content = json.loads(said(capsys, run, *options.split()))
    assert content["settings"]["guidance"] == 1.0 and content["settings"]["cache"] == "dual"
    assert content["sequences"][0]["nfe"] == 4  # everything is sure enough: one call for each block, and its blind twin


def test_a_terminal_shows_the_masks_going(run, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    shown = said(capsys, run, "--prompt", "if ", "--length", 6)
    assert "░" in shown and "1 of 6 tokens in 1 calls" in shown


def test_a_causal_run_is_decoded_token_after_token(causal, capsys) -> None:
    content = json.loads(said(capsys, causal, "--prompt", "def ", "--length", 5, "--json"))
    assert content["tokens"] == 5 and content["tokens_per_call"] == 1
    assert "5 tokens, 5 network calls" in said(capsys, causal, "--prompt", "def ", "--length", 5)
    error = said(capsys, causal, "--block-length", 8, status=2)
    assert "--block-length is of decoding by diffusion, and the model has no mask token" in error
    assert "no mask token" in said(capsys, causal, "--prompt", "a", "--steps", 8, status=2)


def test_a_hugging_face_folder_is_decoded_as_the_run_it_came_from(run, tmp_path, capsys) -> None:
    config, denoiser = open_run(run)
    save(config.model, denoiser.state_dict().__getitem__, tmp_path / "hf")
    arguments = ("--prompt", "def ", "--length", 8, "--json")
    own = json.loads(said(capsys, run, *arguments))
    foreign = json.loads(said(capsys, tmp_path / "hf", *arguments, "--tokenizer", "bytes"))
    assert foreign["sequences"] == own["sequences"]
    numbers = json.loads(said(capsys, tmp_path / "hf", "--prompt", "100 101 102 32", "--length", 8, "--json"))
    assert numbers["sequences"][0]["text"].startswith("100 101 102 32 ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--block-length", "48"), "block_length=48 doesn't divide length=128"),
        (("--block-length", "32", "--steps", "2"), "steps=2 are fewer than the 4 blocks"),
        (("--prompt", "x" * 9000), "prompt 0 has 9000 tokens, and model.max_positions=8192 leave 0"),
        (("--remasking", "best"), "must be one of low_confidence, random, entropy, margin"),
        (("--cache", "triple"), "cache=triple must be one of none, prefix, dual"),
        (("--tokenizer", "nowhere.json"), "nowhere.json can't be read"),
        (("--prompt", "caf\udce9"), "the prompt isn't UTF-8 text: '\\udce9' is half a character"),
    ],
)
def test_what_cannot_be_decoded_is_one_line(run, capsys, arguments, expected: str) -> None:
    error = said(capsys, run, *arguments, status=2)
    assert expected in error and len(error.strip().splitlines()) == 1


def test_a_folder_without_a_model_says_what_would_be_right(tmp_path, capsys) -> None:
    assert "neither config.yaml nor config.json" in said(capsys, tmp_path, status=2)


def test_tokens_of_a_source_are_numbers(tmp_path) -> None:
    assert train(build(TEXT, {"data.corpus": "markov"}), tmp_path).status == "complete"
    opened = open_model(tmp_path)
    assert opened.encode("3 ░ 5") == [3, 256, 5] and opened.decode([3, 256, 5]) == "3 ░ 5"
    with pytest.raises(ValueError, match="the model's tokens are numbers"):
        opened.encode("def")
    assert not opened.denoiser.training and torch.equal(
        opened.denoiser.embed.weight.cpu(), open_run(tmp_path)[1].embed.weight
    )


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "0x10", "1_0", "one"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("sample", "--temperature"),
        ("sample", "--cfg"),
        ("sample", "--threshold"),
        ("sample", "--length"),
        ("bench tasks", "--thresholds"),
        ("bench text", "--temperature"),
    ],
)
def test_no_option_takes_a_number_that_is_none(command: str, option: str, value: str) -> None:
    mistake(ablate(*command.split(), "nowhere", f"{option}={value}"), option, f"'{value}' is not a ", "number")


@pytest.mark.parametrize(("name", "value"), [("temperature", math.inf), ("guidance", math.inf), ("temperature", math.nan),
                                             ("guidance", 1e300)])  # fmt: skip
def test_sampling_takes_no_number_that_makes_logits_infinite(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}=(inf|nan|1e\\+300) must"):
        Sampling(**{name: value})
