"""All five stages at proxy size, cut off and gone on with; what is done stays done."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.config.loading import load
from core.config.stages import llada_moe_stages, make_stages
from core.errors import UserError
from core.model.flops import training_flops
from core.records import run_record
from core.training import preemption
from core.training.checkpoint_files import BEST, saved_step
from core.training.preemption import TrainingPausedError
from core.training.staged import Watcher, check_stages, root_of, train_stages
from core.training.weights import WEIGHTS
from tests.core.training.test_preemption import At

NAMES = ("pretrain-1", "pretrain-2", "anneal-1", "anneal-2", "sft")


@pytest.fixture
def five(tmp_path: Path) -> dict:
    """LLaDA-MoE's stages: another mixture, then another RoPE base, then twice the context, then conversations."""
    for name in ("web", "code"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} lorem ipsum dolor sit amet " * 20)
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes" * (1 + i % 3)}]}
        for i in range(60)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    web, code = f"text:{tmp_path / 'web'}", f"text:{tmp_path / 'code'}"
    return {
        "model": {
            "hidden_size": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "num_experts": 4, "expert_width": 8,
            "max_positions": 192, "rope_theta": 1e4,
        },
        "data": {"corpus": f"0.8*{web} + 0.2*{code}", "sequence_length": 96, "validation_sequences": 8},
        "optimizer": {"learning_rate": 5e-3, "warmup_steps": 2, "schedule": "constant"},
        "trainer": {"steps": 8, "batch_size": 4, "validate_every": 2, "log_every": 1},
        "stages": [
            {"name": "pretrain-1"},
            {"name": "pretrain-2", "settings": {"data.corpus": f"0.3*{web} + 0.7*{code}"}, "select": f"val/nelbo@{code}"},
            {"name": "anneal-1", "settings": {"model.rope_theta": 5e4, "optimizer.schedule": "wsd"}, "select": "last"},
            {"name": "anneal-2", "settings": {
                "model.rope_theta": 5e4, "data.sequence_length": 192, "data.validation_sequences": 4,
                "trainer.batch_size": 2, "optimizer": {"schedule": "cosine", "learning_rate": 1e-3},
            }, "select": "load/max_vio"},
            {"name": "sft", "settings": {
                "model.rope_theta": 5e4, "objective.kind": "sft", "data.corpus": f"instructions:{tmp_path / 'chats.jsonl'}",
                "data.packing": True, "data.sequence_length": 192, "data.validation_sequences": 1,
            }},
        ],
    }  # fmt: skip


class Watched(Watcher):
    """Notes which stages train and which are done, and does something at a step of one."""

    def __init__(self, stage: str = "", step: int = 0, action=None) -> None:
        self.stage, self.at = stage, [At(step, action)]
        self.trained, self.done = [], []

    def begins(self, turn):
        (self.trained if turn.record is None else self.done).append(turn.stage.name)
        return self.at if turn.stage.name == self.stage else ()


class KilledError(BaseException):
    pass


def die() -> None:
    raise KilledError


def test_five_stages_that_are_cut_off_end_as_those_that_are_not(five: dict, tmp_path: Path) -> None:
    stages = make_stages(five)
    whole = train_stages(stages, tmp_path / "whole")
    assert [record.status for _, record in whole] == ["complete"] * 5
    assert [turn.folder.name for turn, _ in whole] == [f"{i}-{name}" for i, name in enumerate(NAMES, start=1)]
    for (before, former), (turn, record) in zip(whole, whole[1:], strict=False):
        source = record.study["started_from"]
        if before.stage.select == "last":
            wanted = {"metric": "last", "value": None, "step": 8, "weights_sha256": former.provenance["weights_sha256"]}
        else:
            wanted = former.best
            column = former.validation[before.stage.select]
            assert wanted["value"] == min(column)
            assert wanted["step"] == former.validation["step"][column.index(min(column))]
        assert source == {"stage": before.stage.name, **wanted}
        assert record.before == former.spent and record.flops == former.flops + training_flops(turn.config)
        assert record.tokens == former.tokens + record.validation["tokens"][-1]
        assert load(turn.folder / "config.yaml") == turn.config
        initial = turn.config.trainer.initial_weights
        assert initial == str((before.folder / (WEIGHTS if before.stage.select == "last" else BEST)).resolve())
        assert run_record.read(turn.folder / "record.json") == record

    out = tmp_path / "cut"
    with pytest.raises(TrainingPausedError):
        train_stages(stages, out, watcher=Watched("anneal-1", 5, preemption.request))
    assert saved_step(root_of(stages, out) / "3-anneal-1") == 5
    with pytest.raises(KilledError):
        train_stages(stages, out, watcher=Watched("sft", 3, die))  # without a checkpoint: that stage starts again
    watched = Watched()
    again = train_stages(stages, out, watcher=watched)
    assert watched.done == [*NAMES[:4]] and watched.trained == ["sft"]
    for (turn, record), (other, expected) in zip(again, whole, strict=True):
        assert record.validation == expected.validation and record.best == expected.best
        own, wanted = (load_file(folder / WEIGHTS) for folder in (turn.folder, other.folder))
        assert all(torch.equal(own[name], wanted[name]) for name in wanted)

    changed = copy.deepcopy(five)
    changed["stages"][4]["settings"]["optimizer.learning_rate"] = 1e-4
    watched = Watched()
    other = train_stages(make_stages(changed), out, watcher=watched)
    assert watched.done == [*NAMES[:4]] and watched.trained == ["sft"]
    assert other[-1][0].folder.name == "5-sft-2" and (out / other[-1][0].folder.with_name("5-sft")).exists()
    assert other[-1][1].study["started_from"] == again[-1][1].study["started_from"]
    later = Watched()
    train_stages(make_stages(changed), out, watcher=later)
    assert later.done == [*NAMES]


def short(five: dict, **changes) -> dict:
    return copy.deepcopy(five) | {"stages": five["stages"][:2], **changes}


def test_a_failed_stage_stops_what_follows_and_is_tried_again(five: dict, tmp_path: Path, monkeypatch) -> None:
    stages = make_stages(short(five))

    def broken() -> None:
        raise RuntimeError("the node is gone")

    watched = Watched("pretrain-1", 3, broken)
    done = train_stages(stages, tmp_path, watcher=watched)
    assert len(done) == 1 and done[0][1].status == "failed" and "the node is gone" in done[0][1].reason
    watched = Watched()
    assert [record.status for _, record in train_stages(stages, tmp_path, watcher=watched)] == ["complete"] * 2
    assert watched.trained == ["pretrain-1", "pretrain-2"]
    folder = root_of(stages, tmp_path) / "1-pretrain-1"
    assert run_record.read(folder / "attempts" / "1.json").reason == done[0][1].reason


def test_a_stage_whose_files_are_damaged_is_trained_again(five: dict, tmp_path: Path) -> None:
    stages = make_stages(short(five))[:1]
    train_stages(stages, tmp_path)
    folder = root_of(stages, tmp_path) / "1-pretrain-1"
    whole = (folder / "record.json").read_text()
    (folder / "record.json").write_text(whole[:100])
    watched = Watched()
    train_stages(stages, tmp_path, watcher=watched)
    assert watched.trained == ["pretrain-1"] and (folder / "attempts" / "1.json").read_text() == whole[:100]
    (folder / "stage.json").write_text('{"sta')
    ((turn, record),) = train_stages(stages, tmp_path)
    assert record.status == "complete" and turn.folder.name == "1-pretrain-1-2" and (folder / WEIGHTS).exists()


def test_weights_that_are_not_the_recorded_ones_are_not_gone_on_from(five: dict, tmp_path: Path) -> None:
    stages = make_stages(short(five))
    train_stages(stages[:1], tmp_path)
    best = root_of(stages, tmp_path) / "1-pretrain-1" / BEST
    content = best.read_bytes()
    best.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="stage pretrain-2 starts from .* which isn't the file that its stage recorded"):
        train_stages(stages, tmp_path)
    best.unlink()
    with pytest.raises(UserError, match="which is gone"):
        train_stages(stages, tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"model.hidden_size": 32}, r"stage sft: model.hidden_size=32 \(not 16\) changes the weights' shapes"),
     ({"model.router.kind": "additive", "model.norm_eps": 1e-6},
      r"stage sft: model.router.kind=additive \(not topk\) changes the weights' shapes, and stage anneal-2's"),
     ({"model.vocab_size": 512}, "model.vocab_size=512"),
     ({"data.corpus": "instructions:nowhere.jsonl"}, "stage sft: data.corpus=instructions:nowhere.jsonl: .* is no file"),
     ({"data.corpus": "stdlib", "data.packing": False}, "stage sft: objective.kind=sft needs responses"),
     ({"trainer.strategy": "deepspeed", "deepspeed.expert_parallel": 2}, "stage sft: .*devices")],
)  # fmt: skip
def test_no_stage_trains_before_all_are_checked(five: dict, tmp_path: Path, settings: dict, expected: str) -> None:
    five["stages"][4]["settings"] |= settings
    with pytest.raises(UserError, match=expected):
        train_stages(make_stages(five), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_metric_that_a_stage_does_not_measure_is_refused(five: dict) -> None:
    five["stages"][0]["select"] = "val/excess_nelbo"
    with pytest.raises(UserError, match="stage pretrain-1: select=val/excess_nelbo is nothing that this run minimises"):
        check_stages(make_stages(five))


def test_corpora_that_are_still_to_be_named_are_refused() -> None:
    with pytest.raises(UserError, match="stage pretrain-1: data.corpus is still to be named"):
        check_stages(llada_moe_stages({}, sft_steps=10))
