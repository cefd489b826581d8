"""Trained models are decoded in the declared ways: once each, again where something changed, and refused before training."""

import json
import shutil
from pathlib import Path

import pytest

from core.records import decoded
from core.records.decoded import FOLDER
from tests.ablations.shell import ablate, mistake

DECLARATION = '''
"""A question about decoding small enough for a test."""
from sweeps.spec import Ablation, Decoders, Factor

ablation = Ablation(
    question="Do blocks matter to a toy?",
    factors=(Factor("objective.kind", ("sft", "autoregressive")), Factor("model.causal", (False, True))),
    control={"objective.kind": "sft", "model.causal": False},
    arms=({"objective.kind": "autoregressive", "model.causal": True},),
    base="tiny",
    seeds=range(3),
    settings={
        "data.corpus": "task:modular", "data.sequence_length": 16, "data.validation_sequences": 16,
        "model.hidden_size": 16, "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 4,
        "model.expert_width": 8, "trainer.steps": 8, "trainer.batch_size": 4, "trainer.validate_every": 4,
    },
    decoders=Decoders(
        factors=(Factor("block_length", (1, "full"), label="block"), Factor("remasking", ("low_confidence", "random"))),
        control={"block_length": "full", "remasking": "low_confidence"},
        settings={"tokens_per_call": 1},
        examples=8, decode_seeds=2,
    ),
)
'''


@pytest.fixture(scope="module")
def decoded_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "toy.py").write_text(DECLARATION)
    done = ablate("run", "toy.py", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 runs trained" in done.stdout and "15 ways of decoding answered, 0 failed" in done.stdout, done.stdout
    return folder


def test_every_model_answers_in_every_way_and_the_report_compares_them(decoded_runs: Path) -> None:
    runs = list((decoded_runs / "runs" / "toy").rglob("record.json"))
    assert len(runs) == 6
    for path in runs:
        found, _ = decoded.read_all(path.parent)
        assert len(found) == (1 if "causal=true" in str(path) else 4)
        for one in found.values():
            assert one.reason is None and one.calls == one.length == 2 and set("".join(one.right)) <= {"0", "1"}
            assert [len(line) for line in one.right] == [8] * (2 if one.settings["remasking"] == "random" else 1)
            assert one.weights == json.loads(path.read_text())["provenance"]["weights_sha256"]
    content = json.loads(ablate("report", "toy.py", "--json", cwd=decoded_runs).stdout)
    ways = content["decoding"]["ways"]
    assert ways[0]["label"] == "block full, remasking low_confidence" and len(ways) == 5
    assert ways[0]["effect"] is None and ways[4]["label"] == "token after token" and ways[4]["effect"] is not None
    assert all(way["n"] == 3 and way["verdict"] for way in ways) and content["decoding"]["missing"] == 0
    assert "Decoding of modular, exact match beside the control's" in content["headline"]
    notes = " ".join(content["tables"][0]["rows"][1]["notes"])
    assert "a bound against an exact likelihood: a lower number of the exact one doesn't prove" in notes
    shown = ablate("report", "toy.py", cwd=decoded_runs).stdout
    assert "Decoding of modular: 8 held-out prompts" in shown and "Cochran" in shown


def test_only_what_is_missing_is_decoded(decoded_runs: Path) -> None:
    files = sorted((decoded_runs / "runs" / "toy").rglob(f"{FOLDER}/*.json"))
    before = {path: path.read_bytes() for path in files}
    assert "0 ways of decoding answered" in ablate("decode", "toy.py", cwd=decoded_runs).stdout
    files[0].unlink()
    files[1].write_text("{")
    done = ablate("decode", "toy.py", cwd=decoded_runs)
    assert done.returncode == 0 and "2 ways of decoding answered, 0 failed" in done.stdout
    assert {path: json.loads(path.read_text())["right"] for path in files} == {
        path: json.loads(content)["right"] for path, content in before.items()
    }


def test_status_and_verify_know_what_was_answered(decoded_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(decoded_runs, tmp_path, dirs_exist_ok=True)

    def findings() -> list[dict]:
        found = json.loads(ablate("verify", "toy.py", "--json", cwd=tmp_path).stdout)["findings"]
        return [one for one in found if one["place"].endswith(f"/{FOLDER}")]

    assert findings() == []
    said = json.loads(ablate("status", "toy.py", "--json", cwd=tmp_path).stdout)["decoded"]
    assert said == {"wanted": 15, "answered": 15, "failed": {}}
    assert "decoded: 15 of 15 ways" in ablate("status", "toy.py", cwd=tmp_path).stdout
    one, two, three, four, five, *_ = sorted((tmp_path / "runs" / "toy").rglob(f"{FOLDER}/*.json"))
    content = {path: json.loads(path.read_text()) for path in (two, three, four, five)}
    one.write_text("{")
    two.write_text(json.dumps(content[two] | {"right": ["1"]}))
    three.write_text(json.dumps(content[three] | {"weights": "others"}))
    four.write_text(json.dumps(content[four] | {"reason": "OSError: no room", "right": []}))
    five.unlink()
    told = {one["text"]: one["note"] for one in findings()}
    assert len(told) == 5
    assert [note for text, note in told.items() if text.startswith(f"{one.name} can't be read")] == [False]
    assert [note for text, note in told.items() if text.startswith(f"{two.stem}: its marks (1) aren't 8 for each")] == [
        False
    ]
    assert [note for text, note in told.items() if "of other weights" in text] == [True]
    assert told[f"{four.stem} failed: OSError: no room"] is True
    assert [note for text, note in told.items() if "aren't decoded yet" in text] == [True]
    shown = ablate("status", "toy.py", cwd=tmp_path).stdout
    assert "decoded: 11 of 15 ways" in shown and "1 failed: OSError: no room" in shown


def test_a_model_without_weights_fails_alone_and_says_so(decoded_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    (tmp_path / "runs").symlink_to(decoded_runs / "runs")
    weights = sorted((decoded_runs / "runs" / "toy").rglob("model.safetensors"))[0]
    content = weights.read_bytes()
    lost = sorted((weights.parent / FOLDER).glob("*.json"))[0]
    answer = lost.read_bytes()
    try:
        weights.unlink()
        lost.unlink()
        done = ablate("decode", "toy.py", cwd=tmp_path)
        assert done.returncode == 1 and "0 ways of decoding answered, 1 failed" in done.stdout
        assert "has no model.safetensors" in " ".join(done.stdout.split())
    finally:
        weights.write_bytes(content)
        lost.write_bytes(answer)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"block_length", (1,', '"block_lenght", (1,', ("unknown setting 'block_lenght'", "block_length")),
        ("(1, \"full\")", "(3, \"full\")", ("block_length=3", "doesn't divide length=2")),
        ('"tokens_per_call": 1', '"tokens_per_call": 5', ("tokens_per_call=5", "must divide the 2 tokens")),
        ('"tokens_per_call": 1', '"temperature": -1.0', ("temperature=-1.0",)),
        ("examples=8", "examples=99999", ("examples must lie between 1 and",)),
        ("decode_seeds=2", "decode_seeds=0", ("decode_seeds must be at least 1",)),
        ('control={"block_length": "full"', 'control={"block_length": 2', ("block_length=2 is not among",)),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_before_anything_is_trained(old: str, new: str, expected: tuple, tmp_path: Path) -> None:
    assert old in DECLARATION
    (tmp_path / "bad.py").write_text(DECLARATION.replace(old, new))
    mistake(ablate("run", "bad.py", cwd=tmp_path), "decoders: ", *expected)
    assert not (tmp_path / "runs").exists()


def test_models_of_no_task_and_a_causal_control_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        DECLARATION.replace("task:modular", "markov").replace('"sft"', '"masked_diffusion"')
    )
    mistake(ablate("plan", "bad.py", cwd=tmp_path), "decoders: data.corpus=markov is no task")
    turned = DECLARATION.replace('control={"objective.kind": "sft", "model.causal": False}', "control=CAUSAL")
    turned = turned.replace('arms=({"objective.kind": "autoregressive", "model.causal": True},)', "arms=(MASKED,)")
    turned = turned.replace(
        "ablation =",
        'CAUSAL = {"objective.kind": "autoregressive", "model.causal": True}\n'
        'MASKED = {"objective.kind": "sft", "model.causal": False}\nablation =',
    )
    (tmp_path / "bad.py").write_text(turned)
    mistake(ablate("plan", "bad.py", cwd=tmp_path), "decoders: the control is causal")


def test_an_ablation_without_decoders_has_nothing_to_decode() -> None:
    mistake(ablate("decode", "balance", "--size", "quick"), "balance: it declares no decoders")
