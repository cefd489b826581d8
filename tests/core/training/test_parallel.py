"""A run is one model however it is spread: the same gradients and losses on one process and on several."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config.loading import build
from core.model.transformer import Denoiser, initialise
from core.records.run_record import RunRecord
from core.runtime.ranks import Ranks
from core.training.rank_launcher import RankFailedError, launch
from tests.core.capacity.held import counted
from tests.core.training.many import run_case
from tests.core.training.test_run import QUICK

STEPS = QUICK | {"trainer.steps": 5, "trainer.validate_every": 0, "trainer.log_every": 1}
KINDS = {
    "topk": {},
    "sigmoid": {"model.router.scores": "sigmoid", "model.router.renormalise": True, "model.shared_expert_width": 16},
    "idle": {"model.router.kind": "bias_balanced"},  # started so that half the experts, one rank's, get no token
    "told": {"model.router.kind": "film", "model.router.sees": "shuffled"},
    "ragged": {"model.router.kind": "adaptive_k"},
    "choosing": {"model.router.kind": "expert_choice", "model.router.k_schedule": "linear_reverse"},
    "published choosing": {"model.router.kind": "ec_dlm", "model.shared_expert_width": 32},
    "unmodulated": {"model.router.kind": "unmodulated", "model.shared_expert_width": 16},
    "random": {"model.router.kind": "random"},
    "additive": {"model.router.kind": "additive"},
    "bins": {"model.router.kind": "bin_bias"},
    "timestep": {"model.router.kind": "timestep_only"},
    "soft": {"model.router.kind": "soft"},
    "hash": {"model.router.kind": "hash"},
    "packed": {"objective.kind": "sft", "data.packing": True},  # of unlike lengths, so that ranks have unlike filling
}
STAGES = [*(("topk", stage) for stage in range(4)), ("idle", 2), ("idle", 3)]  # kinds and ZeRO stages, in one launch
SPREAD_KINDS = [kind for kind in KINDS if kind not in ("topk", "idle")]
# Each kind with its experts spread and all else too; and besides with one of the two alone.
KINDS_OF = {"dp2": SPREAD_KINDS[::2], "ep2": SPREAD_KINDS[1::2], "ep2-dp2": SPREAD_KINDS}
LAYOUTS = {"dp2": (2, 1), "ep2": (2, 2), "ep2-dp2": (4, 2)}
CURVES = ("train/nelbo", "train/load_balancing", "train/z_loss", "train/gradient_norm")
CLOSE = 1e-5

pytestmark = pytest.mark.slow


def settings(kind: str, weights: Path, stage: int | None = None, parallel: int = 1) -> dict:
    """The config's settings of a router kind; spread at a ZeRO stage, or on one device."""
    chosen = STEPS | KINDS[kind] | {"trainer.initial_weights": str(weights / f"{kind}.safetensors")}
    if kind == "packed":
        chosen["data.corpus"] = f"instructions:{weights / 'pairs.jsonl'}"
    if stage is None:
        return chosen
    return chosen | {"trainer.strategy": "deepspeed", "deepspeed.stage": stage, "deepspeed.expert_parallel": parallel}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each router kind's run on one device without an engine, and the weights that all layouts start from."""
    folder = tmp_path_factory.mktemp("single")
    for kind, changes in KINDS.items():
        model = Denoiser(build(STEPS, changes).model)
        initialise(model, 3)
        if kind == "idle":
            for moe in model.mixtures():
                moe.router.bias_E.copy_(torch.tensor([5.0, 5.0, 0.0, 0.0]))
        save_file(model.state_dict(), folder / f"{kind}.safetensors")
    pairs = [{"prompt": "ab" * (1 + i % 2), "response": "xyz" * (1 + i % 7)} for i in range(1200)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    runs = folder / "runs"
    runs.mkdir()
    for kind in KINDS:
        run_case({"name": kind, "settings": settings(kind, folder)}, runs, Ranks())
    return folder


def spread(folder: Path, cases: list[dict], devices: int) -> None:
    (folder / "cases.json").write_text(json.dumps(cases))
    launch(build({}, cases[0]["settings"]), folder, devices, program="tests.core.training.many")


def differences(one: Path, other: Path, kind: str, name: str) -> dict[str, float]:
    """Largest relative difference of the gradients, of each curve and of the final weights' NELBO."""
    before, after = (RunRecord.from_json((f / f"{n}.json").read_text()) for f, n in ((one, kind), (other, name)))
    assert before.status == after.status == "complete", after.reason
    found = {}
    for curve in CURVES:
        left, right = (torch.tensor(record.curve[curve], dtype=torch.float64) for record in (before, after))
        assert len(left) == len(right) == STEPS["trainer.steps"]
        found[curve] = float(((left - right).abs() / left.abs()).max())
    found["val/nelbo"] = abs(after.metrics["val/nelbo"] / before.metrics["val/nelbo"] - 1)
    left, right = load_file(one / f"{kind}.safetensors"), load_file(other / f"{name}.safetensors")
    assert left.keys() == right.keys()
    largest = {key: float(value.abs().max()) for key, value in left.items()}
    found["gradients"] = max(float((left[key] - right[key]).abs().max()) / max(largest[key], 1e-12) for key in left)
    return found


def fullest(folder: Path, name: str, devices: int) -> dict[str, int]:
    """Bytes that the fullest rank holds of weights, gradients and optimizer states."""
    held = [json.loads((folder / f"{name}-held-{rank}.json").read_text()) for rank in range(devices)]
    return {part: max(one[part] for one in held) for part in ("weights", "gradients", "optimizer")}


def launched(layout: str, pairs: list[tuple[str, int]], single: Path, folder: Path) -> None:
    """Train these in a layout, and hold each against the run of one process and against what was counted."""
    devices, parallel = LAYOUTS[layout]
    cases = [{"name": f"{kind}-{stage}", "settings": settings(kind, single, stage, parallel)} for kind, stage in pairs]
    spread(folder, cases, devices)
    for kind, stage in pairs:
        found = differences(single / "runs", folder, kind, f"{kind}-{stage}")
        assert found["gradients"] < CLOSE, (layout, kind, stage, found)
        assert max(found.values()) < CLOSE, (layout, kind, stage, found)
        expected = counted(build({}, settings(kind, single, stage, parallel)), devices)
        assert fullest(folder, f"{kind}-{stage}", devices) == expected, (layout, kind, stage)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_routers_gradients_and_losses_are_those_of_one_process(layout: str, single: Path, tmp_path: Path) -> None:
    launched(layout, [(kind, 2) for kind in KINDS_OF[layout]], single, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_losses_at_every_stage_are_those_of_one_process(
    layout: str, single: Path, tmp_path: Path
) -> None:
    launched(layout, STAGES, single, tmp_path)
    devices, parallel = LAYOUTS[layout]
    idle = RunRecord.from_json((tmp_path / "idle-2.json").read_text())
    assert idle.expert_load["load"][0][0][2:] == [0.0, 0.0]  # a rank had nothing to do
    # All of a group's tokens go to its first rank: half of them leave their rank, come back, and so do their gradients.
    model, tokens = build(STEPS).model, STEPS["trainer.batch_size"] * STEPS["data.sequence_length"] // devices
    rows = 2 * tokens * model.top_k * model.hidden_size * 4
    counts = model.num_experts * 8 // 2
    exchanged = 0 if parallel == 1 else model.num_layers * (rows + counts)
    assert set(idle.curve["train/all_to_all_bytes"]) == {float(exchanged)}
    weights = sum(value.numel() for value in load_file(single / "topk.safetensors").values()) * 4
    assert min(idle.curve["train/reduction_bytes"]) > weights / parallel  # gradients at the least


def test_experts_that_are_not_tagged_are_another_model(single: Path, tmp_path: Path) -> None:
    case = {"name": "untagged", "settings": settings("topk", single, 2, 2), "untagged": True}
    try:
        spread(tmp_path, [case], 2)
        found = differences(single / "runs", tmp_path, "topk", "untagged")
    except (RankFailedError, AssertionError):
        return  # refused by the engine, which is as good
    assert found["gradients"] > 100 * CLOSE and found["train/nelbo"] > CLOSE


def test_layers_computed_again_and_gradients_accumulated_are_the_same_model(single: Path, tmp_path: Path) -> None:
    def cases(stage: int | None, parallel: int) -> list[dict]:
        plain = settings("topk", single, stage, parallel) | {"objective.load_balancing_weight": 0.0}
        return [
            {"name": "recomputed", "settings": plain | {"trainer.activation_checkpointing": True}},
            {"name": "accumulated", "settings": plain | {"trainer.accumulate": 2}},
        ]

    alone, plain = tmp_path / "alone", settings("topk", single) | {"objective.load_balancing_weight": 0.0}
    alone.mkdir()
    run_case({"name": "plain", "settings": plain}, alone, Ranks())
    for case in cases(None, 1):
        run_case(case, alone, Ranks())
    spread(tmp_path, cases(2, 2), 2)
    for folder in (alone, tmp_path):
        for name in ("recomputed", "accumulated"):
            found = differences(alone, folder, "plain", name)
            if name == "accumulated":  # what is reported of the balance is of micro-batches
                del found["train/load_balancing"]
            assert max(found.values()) < CLOSE, (folder, name, found)
