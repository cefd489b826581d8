"""Step time and plans on paper: known answers, sane trends up to 1,024 GPUs, refusals that say what is wrong."""

import time
from dataclasses import replace

import pytest

from core.capacity.assumptions import DEFAULT, Assumptions
from core.capacity.calibration import Calibration
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout, apply, settings
from core.capacity.links import all_to_all_s, gather_s, reduce_s
from core.capacity.planning import plan
from core.capacity.timing import step_time
from core.config.loading import build
from core.config.presets import preset
from core.config.run import RunConfig, config_hash, to_dict
from core.errors import UserError
from core.model.flops import count, flops_per_token
from core.records.run_record import RunRecord

EXACT = replace(DEFAULT, link=1.0, all_to_all=1.0, latency=0.0)


def llada(batch: int = 1024, **changes: object) -> RunConfig:
    return build(to_dict(preset("llada_moe_7b_a1b")), {"trainer.batch_size": batch} | changes)


def test_collectives_by_hand() -> None:
    one, two = Cluster.parse("8xH100-80G"), Cluster.parse("16xH100-80G")
    # A ring of 8 over NVLink (450 GB/s one way): 7/8 of 8 GB; twice that for an all-reduce.
    assert gather_s(8e9, 8, 1, one, EXACT) == pytest.approx(7e9 / 450e9)
    assert reduce_s(8e9, 8, 1, one, EXACT, whole=True) == pytest.approx(14e9 / 450e9)
    assert reduce_s(8e9, 8, 1, one, EXACT, whole=False) == pytest.approx(7e9 / 450e9)
    # Over two nodes eight ports of 50 GB/s together carry it; a group with one member on a node has one.
    assert gather_s(8e9, 16, 1, two, EXACT) == pytest.approx(8e9 * 15 / 16 / 400e9)
    assert gather_s(8e9, 2, 8, two, EXACT) == pytest.approx(4e9 / 50e9)
    assert gather_s(8e9, 1, 8, one, EXACT) == 0.0
    # Of 8 GB to 16 devices half stays on the node but for one's own part; half leaves by one's own port.
    assert all_to_all_s(8e9, 8, one, EXACT) == pytest.approx(7e9 / 450e9)
    assert all_to_all_s(8e9, 16, two, EXACT) == pytest.approx(4e9 / 50e9)


def test_matmuls_by_hand() -> None:
    config = build(
        {"model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0, "model.dense_width": 4096},
        {"model.hidden_size": 1024, "model.num_layers": 8, "model.num_heads": 8, "model.head_dim": 128},
        {"data.sequence_length": 2048, "trainer.batch_size": 32, "trainer.precision": "bf16"},
    )
    found = step_time(config, Layout(1, 1, 4, 1), Cluster.parse("8xH100-80G"))
    weights = 8 * (4 * 1024 * 1024 + 3 * 1024 * 4096)
    tokens = 4 * 2048
    head = 1024 * 259 * (1 + 1e-3) / 2  # of the masked half
    assert found.parts["matmuls"] == pytest.approx(6 * tokens * (weights + head) / (989e12 * 0.73))
    # Scores and values: 4 L H P a token forward, two and a half times that backward.
    assert found.parts["attention"] == pytest.approx(3.5 * 4 * 2048 * 1024 * 8 * tokens / (989e12 * DEFAULT.attention))
    assert found.parts["reduction"] == pytest.approx(
        2 * 7 / 8 * 2 * count(config.model).total / (450e9 * 0.75) + 2 * DEFAULT.latency, rel=1e-3
    )
    assert found.parts["all_to_all"] == found.parts["experts"] == found.parts["gathers"] == 0.0
    assert found.flops == flops_per_token(config) * 32 * 2048
    again = step_time(config, Layout(1, 1, 4, 1, True), Cluster.parse("8xH100-80G"))
    assert again.parts["matmuls"] == pytest.approx(2 * tokens * (4 * weights + 3 * head) / (989e12 * 0.73))


def test_the_released_layer_takes_what_was_measured() -> None:
    # docs/speed.md: 8,192 tokens on one H200 in bf16, forward and backward, at an MFU of 24 %. One layer, and nothing
    # around it that counts.
    model = {"model.hidden_size": 2048, "model.num_experts": 64, "model.top_k": 8, "model.expert_width": 1024}
    small = {"model.num_layers": 1, "model.num_heads": 1, "model.head_dim": 2, "model.qk_norm": "none"}
    run = {"trainer.precision": "bf16", "trainer.batch_size": 64, "data.sequence_length": 128}
    config = build(model, small, run)
    found = step_time(config, Layout(1, 1, 64, 1), Cluster.parse("1xH200-141G"))
    flops = 6 * 8192 * (8 * 3 * 2048 * 1024 + 64 * 2048)
    assert flops / (found.computed * 989e12) == pytest.approx(0.24, rel=0.1)


def test_sending_falls_where_experts_are_shared_out_within_a_node() -> None:
    cluster = Cluster.parse("64xH100-80G")
    parts = {n: step_time(apply(llada(), Layout()), Layout(2, n, 4, 4), cluster).parts for n in (1, 8, 64)}
    assert parts[1]["all_to_all"] == 0 < parts[8]["all_to_all"] < parts[64]["all_to_all"]
    balanced = step_time(apply(llada(), Layout()), Layout(2, 8, 4, 4), cluster, assumptions=Assumptions(imbalance=1.0))
    assert balanced.parts["experts"] < parts[8]["experts"]


def test_from_8_to_1024_gpus() -> None:
    before, config = None, llada(4096)
    for devices in (8, 16, 32, 64, 128, 256, 512, 1024):
        started = time.process_time()
        made = plan(config, Cluster.parse(f"{devices}xH100-80G"))
        assert time.process_time() - started < 1.0 or devices < 1024
        assert made.memory.total <= made.memory.limit < 80e9
        assert 0.05 < made.mfu < 0.7
        assert made.gpu_hours(1e13) == pytest.approx(made.days(1e13) * 24 * devices)
        assert made.days(1e13) * 86400 * made.tokens_per_second == pytest.approx(1e13)
        assert all(one.time.total >= made.time.total for one in made.others)
        assert all(one.memory.missing or one.memory.host > one.memory.host_capacity for one in made.refused)
        assert made.layout.micro_batch * made.layout.accumulate * devices == 4096
        if before is not None:
            assert made.time.total < before.time.total
            assert made.tokens_per_second < 2.2 * before.tokens_per_second
        before = made


def test_a_plan_is_a_config_that_loads_and_trains_the_same_model() -> None:
    config = llada(256)
    made = plan(config, Cluster.parse("8xH100-80G"))
    applied = apply(config, made.layout)
    assert applied == made.config == build(to_dict(config), settings(made.layout))
    assert Layout.of(applied, 8) == made.layout
    assert (applied.model, applied.data, applied.seed) == (config.model, config.data, config.seed)
    assert applied.trainer.batch_size == 256 and config_hash(applied) != config_hash(config)


def test_what_cant_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(UserError, match=r"1xA100-40G \(40 GB.*optimizer.*would help: offload=optimizer, 8 devices"):
        plan(llada(), Cluster.parse("1xA100-40G"), offload=False)
    assert plan(llada(), Cluster.parse("1xA100-40G")).layout.offload != "none"
    with pytest.raises(UserError, match="the layout doesn't fit 8xA100-40G.*activation checkpointing"):
        plan(llada(), Cluster.parse("8xA100-40G"), layout=Layout(2, 8, 128, 1))
    with pytest.raises(UserError, match="batch_size=256 can't be split over 1024.*trainer.batch_size=1024"):
        plan(llada(256), Cluster.parse("1024xH100-80G"))
    with pytest.raises(UserError, match="128 sequences x 2 micro-batches x 8 devices isn't trainer.batch_size=1024"):
        plan(llada(), Cluster.parse("8xH100-80G"), layout=Layout(2, 8, 128, 2))
    with pytest.raises(UserError, match="deepspeed.expert_parallel=3 must divide the 64 experts"):
        plan(llada(), Cluster.parse("8xH100-80G"), layout=Layout(2, 3, 128, 1))
    with pytest.raises(UserError, match="use deepspeed.stage=1 or more"):
        plan(llada(), Cluster.parse("8xH100-80G"), layout=Layout(0, 1, 128, 1))
    with pytest.raises(UserError, match="headroom must lie in"):
        Assumptions(headroom=1.0)


def test_layouts_are_ones_that_the_config_takes() -> None:
    made = plan(llada(), Cluster.parse("32xH100-80G"))
    every = [made.layout, *(one.layout for one in made.others), *(one.layout for one in made.refused)]
    assert len(set(every)) == len(every) and {one.expert_parallel for one in every} == {1, 2, 4, 8}
    for layout in every:
        apply(llada(), layout)
    wide = plan(llada(), Cluster.parse("32xH100-80G"), across_nodes=True)
    assert 32 in {one.layout.expert_parallel for one in wide.others} | {
        one.layout.expert_parallel for one in wide.refused
    }
    tied = build(to_dict(preset("qwen2_5_3b")), {})
    stages = {one.layout.stage for one in plan(tied, Cluster.parse("8xH100-80G")).others}
    assert stages == {1, 2}  # ZeRO-3 can't gather what two layers own


def test_a_measured_run_corrects_what_computing_takes() -> None:
    config, cluster = apply(llada(), Layout(2, 8, 4, 4)), Cluster.parse("64xH100-80G")
    layout = Layout.of(config, 64)
    paper = step_time(config, layout, cluster)
    seconds = paper.total + paper.computed  # computing takes twice as long
    measured = Calibration.of_step(config, seconds, cluster, layout)
    assert measured.scale == pytest.approx(2.0) and measured.device == "64xH100-80G"
    assert step_time(config, layout, cluster, measured).total == pytest.approx(seconds)
    slower = plan(llada(), cluster, calibration=measured)
    assert slower.mfu < plan(llada(), cluster).mfu and slower.calibration == measured
    with pytest.raises(UserError, match="takes longer on paper"):
        Calibration.of_step(config, 1e-6, cluster, layout)


def test_a_record_calibrates_for_its_device() -> None:
    run = {
        "trainer.steps": 100,
        "trainer.validate_every": 50,
        "trainer.batch_size": 16,
        "data.validation_sequences": 240,
    }
    config = build(run)
    # Two validations of 240 sequences cost as much as 10 steps of 16: 100 of 110 parts of the time are training.
    record = RunRecord(
        status="complete", run_hash="", arm_hash="", seed=0, config=to_dict(config), tokens_per_second=16 * 128 / 0.11,
        provenance={"device": "cuda: NVIDIA H200", "devices": 1},
    )  # fmt: skip
    found = Calibration.of_record(record)
    assert found.measured_s == pytest.approx(0.1) and found.device == "1xH200-141G/1"
    assert "measured on 1xH200" in str(found)
    with pytest.raises(UserError, match="'cuda: Tesla T4', which is no known device"):
        Calibration.of_record(replace(record, provenance={"device": "cuda: Tesla T4"}))
    with pytest.raises(UserError, match="a failed run has no time"):
        Calibration.of_record(replace(record, status="failed"))
