"""Every command; those that start from nothing, train or fail as processes, as their user would run them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ablations.cli.doctor import examine
from core.config.loading import load as load_config
from core.config.model import ModelConfig
from core.config.presets import preset
from core.data.tokenizers import train_bpe
from core.interchange.huggingface import save
from core.model.transformer import Denoiser, initialise
from tests.ablations.shell import ROOT, ablate, forked, mistake, process

DECLARATION = '''
"""A question small enough for a test."""
from sweeps.spec import Ablation, Factor

ablation = Ablation(
    question="Does top-k matter to a toy?",
    factors=(Factor("model.top_k", (1, 2), label="top-k"),),
    control={"model.top_k": 1},
    base="tiny",
    secondary=("load/max_vio",),
    margin=0.5,
    seeds=range(3),
    settings={
        "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 16,
        "model.hidden_size": 16, "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 4,
        "model.expert_width": 8, "trainer.steps": 8, "trainer.batch_size": 4, "trainer.validate_every": 4,
        "trainer.log_every": 4,
    },
)
'''


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A folder with the toy declared and run."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "toy.py").write_text(DECLARATION)
    done = process("run", "toy.py", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 runs trained" in done.stdout and "next: ablate report toy.py" in done.stdout
    return folder


def test_a_second_run_trains_nothing_and_leaves_records_as_they_are(swept) -> None:
    before = {path: path.read_bytes() for path in swept.rglob("record.json")}
    assert len(before) == 6
    again = ablate("run", "toy.py", cwd=swept)
    assert again.returncode == 0 and "0 runs trained, 6 recorded before" in again.stdout
    assert {path: path.read_bytes() for path in swept.rglob("record.json")} == before


def test_a_workers_log_says_what_is_trained_on(swept) -> None:
    line = "data.corpus=markov: 1,000,000 tokens to train on, 100,000 held out, generated\n"
    logs = [path.read_text() for path in (swept / "runs").rglob("worker-*.log")]
    assert sum(log.count(line) for log in logs) == 6  # once a run
    assert line in ablate("run", "toy.py", cwd=swept).stdout


def test_commands_say_what_is_trained_on_and_what_is_passed_over(tmp_path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "input.txt").write_text("a line of a text\n" * 3000)
    (texts / "readme.md").write_text("what this is\n")
    (texts / "._input.txt").write_bytes(b"\0\5\x16\7")
    (texts / "test.txt").write_text("a line that is never read\n")
    corpus = f"data.corpus=text:{texts}"
    files = (
        ", from input.txt, readme.md; held out (10.0%): input.txt (tail); passed over: dot files 1, files named test 1"
    )
    line = f"{corpus}: 45,898 tokens to train on, 5,118 held out{files}\n"
    settings = (corpus, "data.sequence_length=16", "data.validation_sequences=16", "trainer.steps=1")
    assert line in ablate("train", "tiny", *settings, "--out", str(tmp_path)).stdout
    assert line in ablate("train", "tiny", *settings, "--dry-run").stdout
    (tmp_path / "toy.py").write_text(DECLARATION)
    assert line in ablate("plan", "toy.py", *settings, "--no-calibration", cwd=tmp_path).stdout
    planned = ablate("plan", "toy.py", *settings, "--no-calibration", "--json", cwd=tmp_path).stdout
    assert json.loads(planned)["data"] == [line[:-1]]
    made = ("data", "tokenize", f"text:{texts}", "--vocab-size", "300", "--to")
    assert f"held out{files}; " in ablate(*made, str(tmp_path / "a")).stdout
    half = ablate(*made, str(tmp_path / "b"), "--held-out-share", "0.5").stdout
    assert "held out (50." in half and "data.held_out_share=0.5" in half.split("use it: ")[1]
    mistake(ablate(*made, str(tmp_path / "c"), "--held-out-share", "2"), "'2' is not a share between 0 and 1")
    mistake(
        ablate("train", "tiny", f"data.corpus=tokens:{tmp_path / 'b'}"), "if it is meant, set data.held_out_share=0.5"
    )


def test_a_changed_config_counts_as_missing(swept) -> None:
    content = json.loads(ablate("plan", "toy.py", "trainer.steps=9", "--no-calibration", "--json", cwd=swept).stdout)
    assert content["runs"] == {"total": 6, "missing": 6}
    content = json.loads(ablate("plan", "toy.py", "--json", cwd=swept).stdout)
    assert content["runs"] == {"total": 6, "missing": 0}
    assert content["seconds_per_run"].keys() == {"top_k=1", "top_k=2"} and content["detectable_effect"] > 0


def test_the_report_says_the_same_in_json_html_and_on_the_terminal(swept) -> None:
    shown = ablate("report", "toy.py", cwd=swept)
    assert shown.returncode == 0 and "Does top-k matter to a toy?" in shown.stdout
    content = json.loads(ablate("report", "toy.py", "--json", cwd=swept).stdout)
    row = content["tables"][0]["rows"][1]
    assert row["effect"]["n"] == 3 and row["verdict"] in shown.stdout
    html = (swept / content["report"]).read_text()
    assert content["headline"] in html and row["verdict"] in html


def test_status_says_how_many_runs_wait_to_be_sent(swept, tmp_path) -> None:
    assert "wait" not in ablate("status", "toy.py", cwd=swept).stdout
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    for n, record in enumerate((tmp_path / "runs" / "toy").glob("*/seed-*/record.json")):
        mirrored = record.parent / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
        mirrored.parent.mkdir(parents=True)
        mirrored.touch()
        if n >= 2:
            mirrored.with_name("sync.json").write_text('{"sent": true, "reason": null}')
    shown = ablate("status", "toy.py", cwd=tmp_path).stdout
    assert "toy: 6 runs: 6 finished\n" in shown
    assert "2 runs wait to be sent to W&B: ablate sync toy.py\n" in shown


def test_export_then_train(swept) -> None:
    exported = ablate("export", "toy.py", cwd=swept)
    assert exported.returncode == 0, exported.stderr
    folder = swept / "runs" / "toy" / "export"
    evidence = json.loads((folder / "evidence.json").read_text())
    assert evidence["evidence"]["headline"] and len(evidence["records"]) == 3
    trained = forked("train", str(folder / "config.yaml"), "trainer.steps=4", cwd=swept)
    assert trained.returncode == 0, trained.stderr
    assert "step 4/4" in trained.stdout
    record = next((swept / "runs" / "train").rglob("record.json"))
    assert json.loads(record.read_text())["status"] == "complete"
    first = record.read_bytes()
    assert ablate("train", str(folder / "config.yaml"), "trainer.steps=4", cwd=swept).returncode == 0
    assert record.read_bytes() == first
    assert len(list((swept / "runs" / "train").rglob("record.json"))) == 2


def test_export_of_an_arm_by_hand_and_of_none(swept, tmp_path) -> None:
    by_hand = ablate("export", "toy.py", "--arm", "top_k=2", "--to", str(tmp_path / "e"), cwd=swept)
    assert by_hand.returncode == 0 and "by hand" in by_hand.stdout
    assert "top_k: 2" in (tmp_path / "e" / "config.yaml").read_text()
    mistake(ablate("export", "toy.py", "--arm", "nope", cwd=swept), "top_k=1, top_k=2")


def test_list_knows_the_declared_studies() -> None:
    rows = json.loads(ablate("list", "--json", "--out", "nowhere").stdout)
    sizes = {(row["name"], row["size"]): row for row in rows}
    assert sizes["balance", "full"]["arms"] == 9 and sizes["balance", "quick"]["arms"] == 4
    assert sizes["experts", "full"]["seeds"] == 8
    shown = ablate("list", "--out", "nowhere")
    assert shown.returncode == 0 and "not run" in shown.stdout


def test_a_file_is_a_study_by_being_there() -> None:
    added = ROOT / "ablations" / f"added_by_test_{os.getpid()}.py"
    try:
        added.write_text(DECLARATION)
        assert f"{added.stem} full" in ablate("list", "--names").stdout
        assert ablate("plan", added.stem, "--no-calibration").returncode == 0
        added.write_text("ablation = 3")
        broken = ablate("list")
        assert broken.returncode == 1 and "must declare" in broken.stdout and "balance" in broken.stdout
    finally:
        added.unlink()


def test_plan_refuses_what_cannot_reach_significance_and_says_what_would() -> None:
    refused = ablate("plan", "balance", "--size", "quick", "--seeds", "2", "--no-calibration")
    assert refused.returncode == 2
    assert "2 cannot reach significance for 3 comparisons" in refused.stderr and "--seeds 4" in refused.stderr
    for more in (("4",), ("2", "--exploratory")):
        assert ablate("plan", "balance", "--size", "quick", "--no-calibration", "--seeds", *more).returncode == 0
    mistake(ablate("run", "balance", "--size", "quick", "--seeds", "2"), "--seeds 4", "--exploratory")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "balanse"), ("did you mean balance",)),
        (("plan", "balance", "trainer.stepz=3"), ("did you mean trainer.steps",)),
        (("plan", "balance", "--size", "quik"), ("quick",)),
        (("plan", "balance", "steps"), ("key=value",)),
        (("plan", "experts", "model.expert_width=3"), ("model.expert_width",)),
        (("plan", "missing.py"), ("no such declaration file",)),
        (("run", "balance", "--workers", "0"), ("--workers",)),
        (("report", "balance", "--out", "nowhere"), ("nothing is recorded", "ablate run balance")),
        (("train", "tiny", "--bogus"), ("--bogus",)),
        (("doctor", "x=1"), ("takes no setting",)),
        (("dance",), ("dance",)),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, expected) -> None:
    mistake(ablate(*arguments), *expected)


def test_a_mistake_ends_a_process_with_one_line_and_status_2() -> None:
    mistake(process("plan", "balance", "trainer.stepz=3"), "did you mean trainer.steps")


def test_a_level_that_the_model_cannot_have_is_named_with_its_arm(tmp_path) -> None:
    (tmp_path / "bad.py").write_text(DECLARATION.replace("(1, 2)", "(1, 9)"))
    mistake(ablate("plan", "bad.py", cwd=tmp_path), "top_k=9", "model.num_experts=4")


def test_a_failed_run_is_status_1_and_a_traceback_only_with_debug(tmp_path) -> None:
    settings = ("optimizer.learning_rate=1e30", "optimizer.gradient_clip=0", "data.corpus=markov", "trainer.steps=20")
    failed = process("train", "tiny", *settings, cwd=tmp_path)
    assert failed.returncode == 1 and "the run failed: TrainingDivergedError" in failed.stderr
    assert "Traceback" not in failed.stderr
    loud = process("--debug", "plan", "balanse")
    assert "Traceback" in loud.stderr and loud.returncode == 2


def test_failed_runs_are_recorded_reported_and_run_again_only_when_asked(tmp_path) -> None:
    (tmp_path / "toy.py").write_text(
        DECLARATION.replace('"model.top_k", (1, 2), label="top-k"', '"optimizer.learning_rate", (1e-3, 1e30)')
        .replace('"model.top_k": 1', '"optimizer.learning_rate": 1e-3')
        .replace('"trainer.steps": 8', '"optimizer.gradient_clip": 0.0, "trainer.steps": 12')
    )
    first = ablate("run", "toy.py", cwd=tmp_path)
    assert first.returncode == 1 and "3 failed" in first.stdout
    report = json.loads(ablate("report", "toy.py", "--json", cwd=tmp_path).stdout)
    assert report["counts"] == {"complete": 3, "failed": 3, "missing": 0}
    assert "3 of 3 runs failed: TrainingDivergedError" in report["tables"][0]["rows"][1]["notes"][0]
    assert "0 runs trained" in ablate("run", "toy.py", cwd=tmp_path).stdout
    ablate("run", "toy.py", "--retry-failed", cwd=tmp_path)
    assert len(list(tmp_path.rglob("attempts/1.json"))) == 3


def test_doctor_says_what_there_is() -> None:
    findings = {entry["name"]: entry for entry in json.loads(process("doctor", "--json").stdout)}
    assert set(findings) == {"python", "torch", "cuda", "deepspeed", "wandb", "slurm"}
    assert findings["torch"]["ok"] and "deepspeed 0.19" in findings["deepspeed"]["found"]
    assert "check itself failed" not in json.dumps(findings)


def test_doctor_waits_no_longer_than_its_limit() -> None:
    findings = {finding.name: finding for finding in examine(limits_s={"deepspeed": 0.0})}
    assert not findings["deepspeed"].ok and findings["deepspeed"].found == "no answer in time"
    assert findings["torch"].ok


def test_describe_counts_a_published_model_as_json() -> None:
    said = json.loads(ablate("describe", "llada_moe_7b_a1b", "--json").stdout)
    assert said["parameters"] == {"total": 7_356_880_896, "active": 1_397_823_488}
    assert said["shapes"]["layers.15.moe.experts.down_EDW"] == [64, 2048, 1024]
    assert said["flops_per_token"]["training"] == pytest.approx(3 * said["flops_per_token"]["forward"])
    assert said["sequence_length"] == 4096


def test_weights_go_out_and_come_back(tmp_path) -> None:
    settings = ["trainer.steps=2", "data.corpus=markov", "trainer.validate_every=0"]
    ablate("train", "tiny", *settings, "--out", str(tmp_path))
    (run,) = (tmp_path / "train").iterdir()
    exported = " ".join(ablate("export", str(run), "--format", "hf").stdout.split())
    assert "LLaDAMoEModelLM" in exported
    assert "router_aux_loss_coef=0.005 is objective.load_balancing_weight=0.01 over the 2 experts" in exported
    back = tmp_path / "back"
    assert "346,784 parameters" in ablate("import", "hf", str(run / "hf"), "--to", str(back)).stdout
    assert load_file(back / "model.safetensors").keys() == load_file(run / "model.safetensors").keys()
    again = ablate("train", str(back / "config.yaml"), *settings, "trainer.steps=1", "--out", str(tmp_path))
    assert "step 1/1" in again.stdout


def test_what_an_import_makes_of_a_folder_is_said(tmp_path) -> None:
    """A mask that is named by hand, a key that the class ignores, types that are kept and digits that are lost."""
    model = replace(preset("tiny").model, hidden_size=16, num_heads=1, head_dim=16, expert_width=8)
    made = Denoiser(model)
    initialise(made, 0)
    state = {name: weight if ".router." in name else weight.bfloat16() for name, weight in made.state_dict().items()}
    save(model, state.__getitem__, tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask_token_id": None, "norm_topk_prob": True}))
    command = ("import", "hf", str(tmp_path / "hf"), "--to")
    mistake(ablate("sample", str(tmp_path / "hf"), "--length", "4"), "names no mask token: bring the model in by")
    mistake(ablate(*command, str(tmp_path / "a")), "names no mask token: give its id by --mask-id N")
    kept = " ".join(ablate(*command, str(tmp_path / "a"), "--mask-id", "256").stdout.split())
    assert "no tokenizer.json in" in kept and "by data.tokenizer=PATH before training on text" in kept
    assert "norm_topk_prob=True is ignored, as LLaDAMoEModelLM ignores it" in kept
    assert "types: 25 weights in bf16, 2 weights in fp32" in kept and "rounded" not in kept
    assert load_file(tmp_path / "a" / "model.safetensors")["layers.0.moe.router.weight_ED"].dtype == torch.float32
    rounded = ablate(*command, str(tmp_path / "b"), "--mask-id", "256", "--dtype", "bf16").stdout
    assert "rounded: 2 weights, such as layers.0.moe.router.weight_ED (fp32)" in rounded
    save(model, state.__getitem__, tmp_path / "half", dtype=torch.float16)  # 16 bits too, but other ones
    half = ablate("import", "hf", str(tmp_path / "half"), "--to", str(tmp_path / "c"), "--dtype", "bf16").stdout
    assert "rounded: 27 weights, such as embed.weight (fp16)" in half


def test_weights_that_are_not_the_configs_are_not_exported(tmp_path) -> None:
    ablate("train", "tiny", "trainer.steps=1", "data.corpus=markov", "trainer.validate_every=0", "--out", str(tmp_path))
    (run,) = (tmp_path / "train").iterdir()
    config = run / "config.yaml"
    whole = config.read_text()
    for change, expected in (
        (("num_layers: 2", "num_layers: 1"), "doesn't fit the config.yaml beside it, which has no layers.1."),
        (("num_layers: 2", "num_layers: 3"), "which wants layers.2.input_norm.weight"),
        (("vocab_size: 259", "vocab_size: 300"), "which wants embed.weight of shape (300, 96)"),
    ):
        config.write_text(whole.replace(*change))
        mistake(ablate("export", str(run), "--format", "hf", "--to", str(tmp_path / "x")), expected)
    assert not (tmp_path / "x").exists()


def test_what_a_stranger_wrote_is_one_line_without_control_codes(tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    forged = "x\nablate: all is well\x1b[2J"
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [forged]}))
    done = ablate("import", "hf", str(tmp_path))
    mistake(done)
    assert "\x1b" not in done.stderr and len(done.stderr.splitlines()) == 1
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["y" * 100_000]}))
    assert len(ablate("import", "hf", str(tmp_path)).stderr) < 3000


def test_a_model_brings_its_tokenizer_and_takes_it_along(tmp_path) -> None:
    texts = [b"the quick brown fox jumps over the lazy dog " * 20]
    source = tmp_path / "hf"
    model = ModelConfig(vocab_size=320, mask_id=1, eos_id=0, pad_id=2, hidden_size=16, num_layers=1, num_heads=1,
                        head_dim=16, num_experts=4, expert_width=8)  # fmt: skip
    made = Denoiser(model)
    initialise(made, 0)
    save(model, made.state_dict().__getitem__, source, load_balancing_weight=0.2)
    bpe = train_bpe(texts, 300)
    bpe.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    end = bpe.token_to_id("<|endoftext|>")
    said = " ".join(ablate("import", "hf", str(source), "--to", str(tmp_path / "a")).stdout.split())
    assert f"tokenizer: {tmp_path / 'a' / 'tokenizer.json'}" in said and "data.chat_template=" in said
    assert "objective.load_balancing_weight=0.2: router_aux_loss_coef times the 2 experts of a token" in said
    config = load_config(tmp_path / "a" / "config.yaml")
    assert config.data.tokenizer == str(tmp_path / "a" / "tokenizer.json") and config.model.eos_id == end
    assert config.objective.load_balancing_weight == 0.2
    (tmp_path / "text.txt").write_bytes(texts[0] * 200)
    settings = [f"data.corpus=text:{tmp_path / 'text.txt'}", "trainer.steps=1", "trainer.batch_size=2"]
    settings += ["data.sequence_length=16", "data.validation_sequences=4"]
    ablate("train", str(tmp_path / "a" / "config.yaml"), *settings, "--out", str(tmp_path))
    (run,) = (tmp_path / "train").iterdir()
    ablate("export", str(run), "--format", "hf", "--to", str(tmp_path / "b"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()


def test_text_becomes_shards_that_train(tmp_path) -> None:
    (tmp_path / "a.txt").write_text(
        "".join(f"line {i} of some text to compress, again and again\n" for i in range(3000))
    )
    said = ablate(
        "data", "tokenize", f"text:{tmp_path / 'a.txt'}", "--vocab-size", "300", "--to", str(tmp_path / "t")
    ).stdout
    settings = said.split("use it: ")[1].split()
    done = ablate(
        "train", "tiny", "trainer.steps=2", "trainer.validate_every=0", "data.validation_sequences=8", *settings,
        "--out", str(tmp_path),
    )  # fmt: skip
    assert "val/bits_per_byte" in done.stdout


MARKOV = ("data.corpus=markov", "trainer.steps=8", "trainer.validate_every=0", "data.validation_sequences=16")


def test_two_devices_need_a_strategy(tmp_path) -> None:
    refused = ablate("train", "tiny", *MARKOV, "--devices", "2", cwd=tmp_path)
    assert refused.returncode == 2 and "set trainer.strategy=deepspeed" in refused.stderr


@pytest.mark.slow
def test_a_run_over_two_devices(tmp_path) -> None:
    spread = ("trainer.strategy=deepspeed", "deepspeed.expert_parallel=2")
    trained = forked("train", "tiny", *MARKOV, *spread, "--devices", "2", cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "step 8/8" in trained.stdout
    weights = next((tmp_path / "runs" / "train").glob("*/model.safetensors"))
    assert load_file(weights)["layers.0.moe.experts.gate_EWD"].shape == (8, 48, 96)


@pytest.mark.slow
def test_a_sweep_over_two_devices(tmp_path) -> None:
    declaration = DECLARATION.replace("range(3)", "range(1), resources=Resources(devices=2)")
    declaration = declaration.replace("import Ablation, Factor", "import Ablation, Factor, Resources")
    together = '"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2, "trainer.log_every": 4,'
    (tmp_path / "pair.py").write_text(declaration.replace('"trainer.log_every": 4,', together))
    swept = ablate("run", "pair.py", "--exploratory", cwd=tmp_path)
    assert swept.returncode == 0 and "2 runs trained" in swept.stdout, swept.stdout + swept.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "pair").rglob("record.json")]
    assert len(found) == 2 and all(record["provenance"]["devices"] == 2 for record in found)


def test_verify_trusts_what_was_run_and_finds_what_was_edited(swept, tmp_path) -> None:
    done = ablate("verify", "toy.py", cwd=swept)
    assert done.returncode == 0, done.stdout
    assert "toy: 6 runs complete, 0 failed, 0 missing: no problem found" in done.stdout
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    path = next((copy / "runs" / "toy").rglob("record.json"))
    content = json.loads(path.read_text())
    content["metrics"]["val/nelbo"] -= 0.25
    path.write_text(json.dumps(content) + "\n")
    done = ablate("verify", "toy.py", cwd=copy)
    assert done.returncode == 1 and "changed since the ledger was told" in done.stdout
    assert "3 problems found" in done.stdout
    answer = json.loads(ablate("verify", "toy.py", "--json", cwd=copy).stdout)
    assert not answer["trusted"] and len(answer["findings"]) == 3
    (copy / "runs" / "journal.log").unlink()
    assert "ledger: there is none" in ablate("verify", "toy.py", cwd=copy).stdout
    assert not (copy / "runs" / "journal.log").exists()


def test_storages_that_cant_be_used_are_refused_before_anything_starts(tmp_path, monkeypatch) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    secret = "postgresql://ada:hunter2@127.0.0.1:9/runs"
    for done in (
        ablate("run", "toy.py", "--storage", secret, cwd=tmp_path),
        ablate("storage", "serve", "--storage", secret, cwd=tmp_path),
    ):
        mistake(done, "storage postgresql://ada:***@127.0.0.1:9/runs can't be used", "refused")
        assert "hunter2" not in done.stdout + done.stderr
    mistake(ablate("storage", "serve", cwd=tmp_path), "--storage: name the database to serve")
    mistake(ablate("storage", "serve", "--storage", "journal:x", cwd=tmp_path), "a proxy serves a database")
    monkeypatch.setenv("ABLATE_STORAGE", "redis://h")
    mistake(ablate("run", "toy.py", cwd=tmp_path), "storage redis://h: use journal:PATH")
    mistake(ablate("verify", "toy.py", cwd=tmp_path), "nothing is recorded of toy (full)")
