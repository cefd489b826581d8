"""Model states and whole memory on paper, against DeepSpeed's own in real runs, ZeRO's paper and slow references."""

import json
from pathlib import Path

import pytest

from core.capacity.assumptions import Assumptions
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.memory import memory
from core.capacity.states import ADAM, Group, _kept, groups, sizes, states
from core.config.loading import build
from core.config.model import ModelConfig
from core.config.presets import PRESETS
from core.config.run import RunConfig
from core.model.flops import count
from core.training.rank_launcher import launch
from tests.core.capacity.held import counted

LLADA = PRESETS["llada_moe_7b_a1b"].model
# ZeRO's stage, expert parallelism, precision, micro-batches.
CASES = [(2, 2, "bf16", 2), (3, 2, "bf16", 1)]  # tests/core/training/test_parallel.py has more, in fp32
# The soft router sends every token to every expert, so that all devices get as many rows: no imbalance to guess.
RUN = {
    "data.corpus": "markov", "data.sequence_length": 64, "data.validation_sequences": 8,
    "model.hidden_size": 64, "model.num_layers": 2, "model.num_heads": 2, "model.head_dim": 32,
    "model.num_experts": 8, "model.expert_width": 32, "model.router.kind": "soft",
    "objective.epsilon": 0.999999,  # masks all: the worst case for logits
    "trainer.steps": 2, "trainer.batch_size": 8, "trainer.validate_every": 0, "optimizer.warmup_steps": 1,
    "trainer.strategy": "deepspeed",
}  # fmt: skip


def settings(case: tuple[int, int, str, int], folder: Path) -> dict:
    stage, parallel, precision, accumulate = case
    chosen = {
        "deepspeed.stage": stage,
        "deepspeed.expert_parallel": parallel,
        "deepspeed.json": str(folder / "ds.json"),
    }
    return RUN | chosen | {"trainer.precision": precision, "trainer.accumulate": accumulate}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, tuple[RunConfig, list[dict]]]:
    """Each case's config, and what either of two processes measured."""
    folder = tmp_path_factory.mktemp("states")
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 20_000}}))
    cases = {"-".join(map(str, case)): settings(case, folder) for case in CASES}
    (folder / "cases.json").write_text(json.dumps(cases))
    record = launch(build({}, settings(CASES[0], folder)), folder, 2, program="tests.core.capacity.ranks")
    assert record.status == "complete", record.reason
    return {
        case: (build({}, settings), [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)])
        for case, (name, settings) in zip(CASES, cases.items(), strict=True)
    }


@pytest.mark.slow
def test_model_states_are_those_that_deepspeed_holds(measured: dict) -> None:
    for case, (config, found) in measured.items():
        fullest = {name: max(one[name] for one in found) for name in ("weights", "gradients", "optimizer")}
        assert counted(config, 2) == fullest, case


@pytest.mark.slow
def test_a_runs_memory_is_what_was_planned(measured: dict) -> None:
    for case, (config, found) in measured.items():
        held = [one["allocated"] + one["weights"] + one["optimizer"] for one in found]
        if case[0] == 3:  # its gradients' buffer is there from the start
            held = [size + one["gradients"] for size, one in zip(held, found, strict=True)]
        needs = memory(config, Layout.of(config, 2), Cluster.parse("2xcpu"), Assumptions(imbalance=1.0))
        assert needs.total == pytest.approx(max(held), rel=0.1), case


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zeros_own_example(stage: int, gigabytes: float) -> None:
    # arXiv 1910.02054, Fig. 1: 7.5B parameters, 64 devices. Without ZeRO it is 16 bytes a parameter, in fp32 as well.
    model = ModelConfig(
        num_layers=34, hidden_size=4096, num_heads=32, head_dim=128, num_experts=0, top_k=0, expert_width=0,
        dense_width=12_160, vocab_size=16_384,
    )  # fmt: skip
    assert count(model).total == pytest.approx(7.5e9, rel=0.01)
    found = states(model, stage, 1, "none", 64, 2 if stage else 4)
    held = (found.weights + found.gradients + found.optimizer) * 7.5e9 / count(model).total / 1e9
    assert held == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("devices", "parallel"), [(8, 1), (8, 8), (64, 8), (256, 4)])
def test_shares_make_the_whole(stage: int, devices: int, parallel: int) -> None:
    counted, found = sizes(LLADA), states(LLADA, stage, parallel, "none", devices, 2)
    assert counted.total == 7_356_880_896
    assert 1 <= devices * found.optimizer / (ADAM * counted.total) < 1.0001
    experts = sum(counted.experts) // parallel
    assert found.local_elements == counted.total - sum(counted.experts) + experts
    if stage == 3:
        assert 1 <= devices * found.gradients / (2 * counted.total) < 1.0001


def test_a_part_keeps_the_gradients_of_every_tensor_that_it_touches() -> None:
    made = [Group((5, 9, 1, 30, 7, 4), 4, False), Group((10, 3, 21), 2, True)]
    parts = [-(-sum(group.sizes) // (2 * group.sharers)) * 2 for group in made]

    def touched(group: Group, part: int, place: int) -> int:
        begin, total = 0, 0
        for size in group.sizes:
            owned = set(range(place * part, (place + 1) * part))
            total += size if owned & set(range(begin, begin + size)) else 0
            begin += size
        return total

    slow = [touched(made[0], parts[0], rank) + touched(made[1], parts[1], rank // 2) for rank in range(4)]
    assert _kept(made, parts) == max(slow)


@pytest.mark.parametrize("parallel", [1, 8])
def test_more_devices_never_take_more_memory_of_one(parallel: int) -> None:
    config = build({"trainer.precision": "bf16"}, {"model.num_experts": 64, "model.hidden_size": 512})
    for model in (LLADA, config.model):
        assert all(sum(group.sizes) <= 178_956_971 for group in groups(model, 8, parallel) if group.are_experts)
        for stage in (1, 2, 3):
            held = [states(model, stage, parallel, "none", 8 * 2**n, 2) for n in range(8)]
            for name in ("weights", "gradients", "optimizer", "step"):
                values = [getattr(one, name) for one in held]
                falling = all(later <= sooner * 1.001 for sooner, later in zip(values, values[1:], strict=False))
                assert falling, (stage, name, values)


def test_offload_moves_states_to_the_host() -> None:
    plain = states(LLADA, 3, 1, "none", 8, 2)
    optimizer, parameters = (states(LLADA, 3, 1, kind, 8, 2) for kind in ("optimizer", "parameters"))
    assert plain.host == 0 and optimizer.optimizer == parameters.optimizer == 0
    assert optimizer.host == pytest.approx(plain.optimizer * 18 / 12, rel=1e-6)
    assert parameters.weights == 0 and parameters.host == optimizer.host + plain.weights


def test_parts_are_of_the_fullest_moment() -> None:
    config = build({"trainer.precision": "bf16", "trainer.batch_size": 64})
    needs = memory(config, Layout(2, 2, 4, 2), Cluster.parse("8xH100-80G"))
    assert sum(needs.parts.values()) == needs.total == max(sum(parts.values()) for parts in needs.moments.values())
    assert needs.fits and needs.parts["overhead"] == 2_000_000_000 and needs.limit == round(80e9 * 0.92)
