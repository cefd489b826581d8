"""`ablate bench lm-eval` on tasks of its own, by the real lm-eval, offline."""

import importlib
import json
import sys

import pytest
import torch
import yaml

from ablations.cli.models import open_model
from core.config.loading import build
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import sample
from core.diffusion.sampling import Sampling
from core.probes.likelihood import Continued, log_likelihoods
from core.training.run import train
from tests.ablations.shell import ablate, mistake
from tests.core.training.test_run import QUICK

CHOICES = [
    {"question": "sky", "choices": ["blue", "green"], "answer": 0},
    {"question": "grass", "choices": ["red", "green"], "answer": 1},
    {"question": "snow", "choices": ["white", "a long wrong answer"], "answer": 0},
]


def task(folder, name: str, rows: list[dict], **said) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": name, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}, **said,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    task(
        folder, "colours", CHOICES, output_type="multiple_choice", doc_to_text="{{question}} is", doc_to_choice="choices",
        doc_to_target="answer", metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    task(
        folder, "sums", [{"q": f"{n}+1=", "a": str(n + 1)} for n in range(5)], output_type="generate_until",
        doc_to_text="{{q}}", doc_to_target="{{a}}", generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    task(
        folder, "texts", [{"text": "to be or not to be " * 5}, {"text": "that"}], output_type="loglikelihood_rolling",
        doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "a.txt").write_text("to be or not to be, that is the question\n" * 400)
    text = {"data.corpus": f"text:{folder / 'a.txt'}", "trainer.steps": 2, "trainer.validate_every": 0}
    causal = {"model.causal": True, "objective.kind": "autoregressive"}
    for name, changes in (("masked", {}), ("causal", causal)):
        assert train(build(QUICK, text, {"model.max_positions": 64}, changes), folder / name).status == "complete"
    return folder


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    """Data sets are prepared in a folder of the tests, and nothing is asked of the network."""
    pytest.importorskip("lm_eval", reason="the extra `eval` isn't installed")
    patch = pytest.MonkeyPatch()
    datasets = pytest.importorskip("datasets")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


def rows(model, tasks, names: str, *more: str) -> dict:
    done = ablate("bench", "lm-eval", str(model), "--include-path", str(tasks), "--tasks", names, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tasks_of_all_kinds_are_answered_and_recorded(models, tasks, kind: str) -> None:
    model = models / kind
    content = rows(model, tasks, "colours,sums,texts", "--block-length", "4", "--samples", "9")
    assert json.loads((model / "lm-eval.colours_sums_texts.json").read_text()) == content
    found = {(row["task"], row["metric"]): row for row in content["rows"]}
    assert {key: row["examples"] for key, row in found.items()} == {
        ("colours", "acc"): 3, ("sums", "exact_match"): 5, ("texts", "byte_perplexity"): 2,
    }  # fmt: skip
    assert content["requests"] == {"loglikelihood": 6, "generate_until": 5, "loglikelihood_rolling": 3}
    assert not any(content["truncated"].values()) and content["causal"] == (kind == "causal")

    opened = open_model(model)
    asked = [
        Continued(list(f"{row['question']} is".encode()), list(f" {choice}".encode()))
        for row in CHOICES
        for choice in row["choices"]
    ]
    log_p = [each.log_p for each in log_likelihoods(opened.denoiser, asked, draws=9)]
    right = [
        log_p[2 * place + row["answer"]] == max(log_p[2 * place : 2 * place + 2]) for place, row in enumerate(CHOICES)
    ]
    assert found["colours", "acc"]["value"] == pytest.approx(sum(right) / 3)
    perplexity = found["texts", "byte_perplexity"]["value"]
    windows = [Continued([], list(b"that")), *windows_of(list(b"to be or not to be " * 5))]
    total = sum(each.log_p for each in log_likelihoods(opened.denoiser, windows, draws=9))
    assert perplexity == pytest.approx(float(torch.tensor(-total / 99).exp()), rel=1e-5)


def windows_of(tokens: list[int]) -> list[Continued]:
    return [Continued([], tokens[:64]), Continued(tokens[63:64], tokens[64:])]


def test_responses_are_those_of_ablate_sample(models, tasks, monkeypatch) -> None:
    from core.probes.harness import MaskedLM

    said: list[str] = []
    whole = MaskedLM.generate_until
    monkeypatch.setattr(MaskedLM, "generate_until", lambda self, asked: said.extend(whole(self, asked)) or said)
    rows(models / "masked", tasks, "sums", "--block-length", "4", "--seed", "5", "--temperature", "1", "--batch", "2")
    settings = ("--length", "8", "--block-length", "4", "--seed", "5", "--temperature", "1")
    prompts = [word for n in range(5) for word in ("--prompt", f"{n}+1=")]
    sampled = json.loads(ablate("sample", str(models / "masked"), *prompts, *settings, "--json").stdout)
    assert said == [each["response"].split("\n")[0] for each in sampled["sequences"]] and len(set(said)) > 1
    opened = open_model(models / "masked")
    decoded = sample(
        NetworkPredictor(opened.denoiser),
        [list(b"0+1=")],
        Sampling(length=8, block_length=4, seed=5, temperature=1.0),
        256,
    )
    assert opened.decode(decoded.sequence(0).tolist()[4:]).startswith(said[0])


def test_a_batch_changes_no_result(models, tasks) -> None:
    one, many = (
        rows(models / "masked", tasks, "colours,sums", "--batch", size, "--samples", "9") for size in ("1", "7")
    )
    for a, b in zip(one["rows"], many["rows"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-5)


def test_what_had_to_be_cut_is_said(models, tasks) -> None:
    arguments = ("bench", "lm-eval", str(models / "causal"), "--include-path", str(tasks), "--tasks", "colours,sums")
    done = ablate(*arguments, "--context", "11", "--limit", "2", "--to", str(tasks / "out.json"))
    assert done.returncode == 0, done.stderr
    content = json.loads((tasks / "out.json").read_text())
    assert content["requests"] == {"loglikelihood": 4, "generate_until": 2}
    assert content["truncated"] == {"loglikelihood": 3, "generate_until": 2}  # "sky is blue" has 11 bytes
    assert "generate_until: 2 of 2 requests lost the beginning of their context" in " ".join(done.stdout.split())
    small = ablate(*arguments, "--context", "8")
    assert small.returncode == 2 and "leaves no room for a prompt within 8: ask for fewer with" in small.stderr
    mistake(ablate(*arguments, "--context", "65"), "--context 65 must lie in 1..model.max_positions=64")


def test_what_cannot_be_asked_is_one_line(models, tasks, tmp_path, monkeypatch) -> None:
    arguments = ("bench", "lm-eval", str(models / "masked"))
    mistake(ablate(*arguments), "lm-eval needs --tasks")
    manager = importlib.import_module("lm_eval.tasks.manager")
    monkeypatch.setattr(manager, "__file__", str(tasks / "manager.py"))  # its own index takes ten seconds to read
    mistake(ablate(*arguments, "--tasks", "colurs"), "lm-eval has no task colurs: did you mean colours?")
    mistake(ablate(*arguments, "--tasks", "sums", "--include-path", str(tmp_path / "none")), "is no folder")
    task(tmp_path, "absent", [])
    (tmp_path / "absent.jsonl").unlink()
    mistake(
        ablate(*arguments, "--tasks", "absent", "--include-path", str(tmp_path)),
        "lm-eval's task absent: its data can't be had (FileNotFoundError",
    )
    given = (*arguments, "--include-path", str(tasks), "--tasks", "sums")
    mistake(ablate(*given, "--block-length", "4", "8"), "--block-length takes one value here, not 2")
    mistake(ablate(*given, "--limit", "0"), "--limit must be at least 1, not 0")
    mistake(ablate(*given, "--threshold", "2"), "threshold=2.0 must lie in (0, 1]")
    task(
        tmp_path, "code", [{"q": "a"}], output_type="generate_until", doc_to_text="{{q}}", doc_to_target="b", unsafe_code=True
    )  # fmt: skip
    mistake(ablate(*arguments, "--tasks", "code", "--include-path", str(tmp_path)), "use ablate bench humaneval")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    mistake(ablate(*given), "lm-eval isn't installed (lm_eval.tasks): pip install 'moe-diffusion-ablations[eval]'")
