"""Formats of other trainers: known answers, every key accounted for, the rate of every step, and files that parse."""

import ast
import math
import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from core.config.loading import build
from core.config.presets import preset
from core.config.run import RunConfig, known_keys, learning_rate_factor, to_dict
from core.errors import UserError
from sweeps.export.python_source import Call, Name, source
from sweeps.export.trainer_format import EXPORT_FORMATS, Job, write_format

FORMATS = ["megatron", "olmo-core", "torchtitan"]
GATES = {"model.router.scores": "sigmoid", "model.router.renormalise": True}
SPREAD = {"trainer.strategy": "deepspeed", "trainer.precision": "bf16"}
DENSE = {"model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0, "model.dense_width": 192}
CAUSAL = {"model.causal": True, "objective.kind": "autoregressive"}


def changed(name: str, settings: Mapping[str, Any]) -> RunConfig:
    return build(to_dict(preset(name)), settings)


def written(kind: str, config: RunConfig, folder: Path, devices: int = 1) -> dict[str, str]:
    """Texts of a format's files, without the comments that head them."""
    write_format(kind, Job(config, devices), folder)
    return {
        path.name: "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("# "))
        for path in sorted(folder.iterdir())
    }


def arguments(script: str, folder: Path) -> dict[str, str | bool]:
    """What pretrain_gpt.py gets of a script, as bash hands it over; flags are True."""
    fake = folder / "bin" / "torchrun"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    (folder / "run.sh").write_text(script)
    environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "MEGATRON": "/a b"}
    done = subprocess.run(
        ["bash", folder / "run.sh", "--save", "x y"], env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[2] == "/a b/pretrain_gpt.py" and words[-2:] == ["--save", "x y"]
    found: dict[str, str | bool] = {}
    for word in words[3:-2]:
        if word.startswith("--"):
            name = word
            found[name] = True
        else:
            found[name] = word
    return found


class Names(dict[str, Any]):
    """Names of a module that isn't installed: each is a function that gives its name and its arguments."""

    def __missing__(self, name: str) -> Any:
        if name == "get_train_spec":
            return lambda model: SimpleNamespace(model_args=self.setdefault("specs", {}).setdefault(model, {}))
        return Stub(name)


class Stub:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *values: Any, **keywords: Any) -> Any:
        return {"": self.name} | dict(enumerate(values)) | keywords

    def __getattr__(self, name: str) -> Any:
        return Stub(f"{self.name}.{name}")

    def __eq__(self, other: object) -> bool:
        return self.name == other

    __hash__ = None  # type: ignore[assignment]


def ran(text: str) -> Names:
    """The names that a module sets, without its imports."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom)]
    names = Names()
    exec(compile(tree, "module", "exec"), {}, names)
    return names


@pytest.mark.parametrize("kind", FORMATS)
def test_every_key_is_expressed_or_listed(kind) -> None:
    assert list(EXPORT_FORMATS) == FORMATS
    assert EXPORT_FORMATS[kind].keys() == set(known_keys())
    options = [key for option in EXPORT_FORMATS[kind].options for key in option.keys]
    assert not set(options) & set(EXPORT_FORMATS[kind].ignored)


# A change of each key that some format expresses, with the other settings that it needs.
CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 3},
    "model.vocab_size": {"model.vocab_size": 300},
    "model.eos_id": {"model.eos_id": 3},
    "model.hidden_size": {"model.hidden_size": 128, "model.num_heads": 4},
    "model.num_layers": {"model.num_layers": 3},
    "model.num_heads": {"model.num_heads": 6},
    "model.num_kv_heads": {"model.num_kv_heads": 1},
    "model.head_dim": {"model.head_dim": 16},
    "model.qk_norm": {"model.qk_norm": "none"},
    "model.qkv_bias": {"model.qkv_bias": True},
    "model.tied_embeddings": {"model.tied_embeddings": True},
    "model.num_experts": {"model.num_experts": 4},
    "model.top_k": {"model.top_k": 1},
    "model.expert_width": {"model.expert_width": 64},
    "model.granularity": {"model.granularity": 2},
    "model.shared_expert_width": {"model.shared_expert_width": 96},
    "model.dense_layers": {"model.dense_layers": [0], "model.dense_width": 64},
    "model.dense_width": DENSE,
    "model.router.kind": GATES | {"model.router.kind": "bias_balanced"},
    "model.router.scores": GATES,
    "model.router.renormalise": {"model.router.renormalise": True},
    "model.router.gate_scale": {"model.router.gate_scale": 2.5},
    "model.router.bias_update_rate": GATES | {"model.router.kind": "bias_balanced", "model.router.bias_update_rate": 0.1},
    "model.rope_theta": {"model.rope_theta": 5e5},
    "model.max_positions": {"model.max_positions": 512},
    "model.norm_eps": {"model.norm_eps": 1e-6},
    "model.init_std": {"model.init_std": 0.01},
    "objective.load_balancing_weight": {"objective.load_balancing_weight": 0.1},
    "objective.z_loss_weight": {"objective.z_loss_weight": 0.1},
    "data.sequence_length": {"data.sequence_length": 32},
    "optimizer.learning_rate": {"optimizer.learning_rate": 1e-4},
    "optimizer.beta1": {"optimizer.beta1": 0.8},
    "optimizer.beta2": {"optimizer.beta2": 0.99},
    "optimizer.weight_decay": {"optimizer.weight_decay": 0.0},
    "optimizer.warmup_steps": {"optimizer.warmup_steps": 7},
    "optimizer.schedule": {"optimizer.schedule": "wsd"},
    "optimizer.decay_fraction": {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.3},
    "optimizer.final_lr_fraction": {"optimizer.final_lr_fraction": 0.0},
    "optimizer.gradient_clip": {"optimizer.gradient_clip": 0.0},
    "trainer.steps": {"trainer.steps": 500},
    "trainer.batch_size": {"trainer.batch_size": 32},
    "trainer.log_every": {"trainer.log_every": 7},
    "trainer.precision": {"trainer.precision": "bf16"},
    "trainer.compile": {"trainer.compile": True},
    "trainer.accumulate": {"trainer.accumulate": 4},
    "trainer.activation_checkpointing": {"trainer.activation_checkpointing": True},
    "trainer.checkpoint_every": {"trainer.checkpoint_every": 50},
    "deepspeed.stage": SPREAD | {"deepspeed.stage": 2},
    "deepspeed.expert_parallel": SPREAD | {"deepspeed.expert_parallel": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_a_key_that_is_expressed_changes_the_files_or_is_refused(kind, tmp_path) -> None:
    expressed = {key for option in EXPORT_FORMATS[kind].options for key in option.keys}
    assert expressed <= set(CHANGES)
    plain = written(kind, preset("tiny"), tmp_path / "plain")
    refused = {key for limit in EXPORT_FORMATS[kind].refusals for key in limit.keys}
    for key in sorted(expressed):
        config = changed("tiny", CHANGES[key])
        try:
            assert written(kind, config, tmp_path / key) != plain, key
        except UserError as error:
            assert key in refused and key in str(error)


def test_megatron_knows_llada_moe_7b(tmp_path) -> None:
    files = written("megatron", preset("llada_moe_7b_a1b"), tmp_path, devices=64)
    said = arguments(files["megatron.sh"], tmp_path)
    assert said == {
        "--num-layers": "16", "--hidden-size": "2048", "--ffn-hidden-size": "1024", "--num-attention-heads": "16",
        "--kv-channels": "128", "--num-query-groups": "16", "--qk-layernorm": True, "--disable-bias-linear": True,
        "--swiglu": True, "--normalization": "RMSNorm", "--norm-epsilon": "1e-05", "--position-embedding-type": "rope",
        "--rotary-base": "50000", "--max-position-embeddings": "8192", "--untie-embeddings-and-output-weights": True,
        "--tokenizer-type": "NullTokenizer", "--vocab-size": "157183", "--make-vocab-size-divisible-by": "1",
        "--init-method-std": "0.02", "--attention-dropout": "0.0", "--hidden-dropout": "0.0", "--num-experts": "64",
        "--moe-ffn-hidden-size": "1024", "--moe-router-topk": "8", "--moe-router-score-function": "softmax",
        "--moe-router-pre-softmax": True, "--moe-router-load-balancing-type": "aux_loss",
        "--moe-aux-loss-coeff": str(0.01 / 16), "--moe-z-loss-coeff": str(0.001 / 16), "--moe-router-dtype": "fp32",
        "--moe-token-dispatcher-type": "alltoall", "--moe-grouped-gemm": True, "--expert-model-parallel-size": "1",
        "--seq-length": "4096", "--micro-batch-size": "4", "--global-batch-size": "256", "--train-iters": "100000",
        "--optimizer": "adam", "--lr": "0.0004", "--min-lr": str(0.0004 * 0.1), "--lr-decay-style": "cosine",
        "--lr-decay-iters": "99999", "--lr-warmup-iters": "1999", "--lr-warmup-init": str(0.0004 / 2000),
        "--weight-decay": "0.1", "--adam-beta1": "0.9", "--adam-beta2": "0.95", "--adam-eps": "1e-08",
        "--clip-grad": "1.0", "--bf16": True, "--log-interval": "50", "--seed": "1",
    }  # fmt: skip
    bridge = yaml.safe_load(files["megatron_bridge.yaml"])
    assert bridge["model"]["moe_aux_loss_coeff"] == 0.01 / 16 and bridge["model"]["num_moe_experts"] == 64
    assert bridge["dataset"]["seq_length"] == 4096
    assert bridge["model"]["vocab_size"] == 157_184 and bridge["mixed_precision"] == "bf16_mixed"
    assert bridge["optimizer"]["adam_eps"] == 1e-8 and bridge["scheduler"]["lr_warmup_iters"] == 1999


def test_megatron_has_dense_layers_shared_experts_biases_and_dense_models(tmp_path) -> None:
    settings = GATES | {
        "model.router.kind": "bias_balanced", "model.num_layers": 4, "model.dense_layers": [0], "model.dense_width": 192,
        "model.shared_expert_width": 40, "model.router.gate_scale": 2.5, "objective.z_loss_weight": 0.0,
    }  # fmt: skip
    files = written("megatron", changed("tiny", settings), tmp_path / "sparse")
    said = arguments(files["megatron.sh"], tmp_path)
    assert said["--moe-layer-freq"] == "([0]*1+[1]*3)" and said["--ffn-hidden-size"] == "192"
    assert said["--moe-shared-expert-intermediate-size"] == "40" and said["--moe-router-topk-scaling-factor"] == "2.5"
    assert said["--moe-router-enable-expert-bias"] is True and said["--moe-router-bias-update-rate"] == "0.001"
    assert float(said["--moe-aux-loss-coeff"]) == 0.01 / 3 and "--moe-z-loss-coeff" not in said
    assert "--moe-router-pre-softmax" not in said and "--bf16" not in said
    assert yaml.safe_load(files["megatron_bridge.yaml"])["model"]["moe_layer_freq"] == [0, 1, 1, 1]

    files = written("megatron", preset("qwen2_5_3b"), tmp_path / "dense")
    said = arguments(files["megatron.sh"], tmp_path)
    assert (
        said["--add-qkv-bias"] is True and said["--group-query-attention"] is True and said["--num-query-groups"] == "2"
    )
    assert not [name for name in said if "moe" in name or "expert" in name or "untie" in name]
    bridge = yaml.safe_load(files["megatron_bridge.yaml"])["model"]
    assert bridge["num_moe_experts"] is None and bridge["share_embeddings_and_output_weights"] is True


def test_torchtitan_knows_llada_moe_7b(tmp_path) -> None:
    files = written("torchtitan", preset("llada_moe_7b_a1b"), tmp_path, devices=64)
    said = tomllib.loads(files["torchtitan.toml"])
    assert said["optimizer"] == {
        "name": "AdamW", "lr": 4e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
    }  # fmt: skip
    assert said["lr_scheduler"] == {"warmup_steps": 2000, "decay_type": "cosine", "min_lr_factor": 0.1}
    assert said["training"] == {
        "local_batch_size": 4, "global_batch_size": 256, "seq_len": 4096, "steps": 100_000, "max_norm": 1.0,
        "mixed_precision_param": "bfloat16",
    }  # fmt: skip
    assert said["experimental"]["custom_import"] == "torchtitan_model"
    names = ran(files["torchtitan_model.py"])
    model = names["specs"]["qwen3"][said["model"]["flavor"]]
    assert model == {
        "": "Qwen3ModelArgs", "dim": 2048, "n_layers": 16, "n_heads": 16, "n_kv_heads": 16, "vocab_size": 157_184,
        "head_dim": 128, "hidden_dim": 1024, "norm_eps": 1e-5, "rope_theta": 5e4, "qk_norm": True, "max_seq_len": 8192,
        "depth_init": False, "eos_id": 156_892, "enable_weight_tying": False, "moe_enabled": True, "moe_inter_dim": 1024,
        "moe_args": {
            "": "MoEArgs", "num_experts": 64, "num_shared_experts": 0, "top_k": 8, "score_func": "softmax",
            "route_norm": False, "route_scale": 1.0, "score_before_experts": False, "use_grouped_mm": True,
            "load_balance_coeff": None,
        },
    }  # fmt: skip


def test_torchtitan_has_biases_shared_experts_and_no_clipping(tmp_path) -> None:
    settings = {"model.router.kind": "bias_balanced", "model.shared_expert_width": 96, "optimizer.gradient_clip": 0.0}
    files = written("torchtitan", changed("tiny", settings), tmp_path)
    assert tomllib.loads(files["torchtitan.toml"])["training"]["max_norm"] == math.inf
    mixture = ran(files["torchtitan_model.py"])["MODEL"]["moe_args"]
    assert mixture["load_balance_coeff"] == 1e-3 and mixture["num_shared_experts"] == 2
    assert mixture["use_grouped_mm"] is False  # fp32


def test_olmo_core_knows_llada_moe_7b(tmp_path) -> None:
    names = ran(written("olmo-core", preset("llada_moe_7b_a1b"), tmp_path, devices=64)["olmo_core_config.py"])
    norm = {"": "LayerNormConfig", "name": "LayerNormType.rms", "eps": 1e-5, "bias": False}
    assert names["MODEL"] == {
        "": "TransformerConfig", "name": "TransformerType.moe", "d_model": 2048, "vocab_size": 157_184, "n_layers": 16,
        "init_std": 0.02, "init_seed": 0,
        "block": {
            "": "TransformerBlockConfig", "name": "TransformerBlockType.moe",
            "attention": {
                "": "AttentionConfig", "n_heads": 16, "n_kv_heads": 16, "bias": False, "qk_norm": norm,
                "use_head_qk_norm": True, "rope": {"": "RoPEConfig", "theta": 50_000},
            },
            "layer_norm": norm,
            "feed_forward_moe": {
                "": "MoEConfig", "name": "MoEType.dropless", "num_experts": 64, "hidden_size": 1024,
                "lb_loss_weight": 0.01, "z_loss_weight": 0.001, "scale_loss_by_num_layers": True,
                "router": {"": "MoERouterConfig", "top_k": 8, "gating_function": "MoERouterGatingFunction.softmax",
                           "dtype": "DType.float32"},
            },
        },
        "lm_head": {"": "LMHeadConfig", "layer_norm": norm, "bias": False},
    }  # fmt: skip
    assert names["GLOBAL_BATCH_TOKENS"] == 256 * 4096 and names["MAX_DURATION"][0] == 100_000
    train = names["TRAIN_MODULE"]
    assert train["rank_microbatch_size"] == 4 * 4096 and train["max_grad_norm"] == 1.0
    [override] = train["optim"]["group_overrides"]
    assert override["params"] == ["*norm.weight"] and override["overrides"] == {"weight_decay": 0.0}


def test_olmo_core_has_dense_layers_whose_losses_are_divided_by_all_layers(tmp_path) -> None:
    settings = {"model.num_layers": 4, "model.dense_layers": [0], "model.dense_width": 192, "model.head_dim": 16}
    config = changed("tiny", settings | {"objective.load_balancing_weight": 0.0, "model.router.renormalise": True})
    model = ran(written("olmo-core", config, tmp_path / "sparse")["olmo_core_config.py"])["MODEL"]
    mixture = model["block"]["feed_forward_moe"]
    assert mixture["z_loss_weight"] == 0.001 * 4 / 3 and mixture["lb_loss_weight"] is None
    assert mixture["router"]["normalize_expert_weights"] == 1.0 and model["block"]["attention"]["head_dim"] == 16
    [(layer, block)] = model["block_overrides"].items()
    assert layer == 0 and block["name"] == "TransformerBlockType.default" and "feed_forward_moe" not in block
    assert block["feed_forward"] == {"": "FeedForwardConfig", "hidden_size": 192, "bias": False}
    assert block["attention"] == model["block"]["attention"]

    model = ran(written("olmo-core", preset("llada_8b"), tmp_path / "dense")["olmo_core_config.py"])["MODEL"]
    assert model["name"] == "TransformerType.default" and model["block"]["feed_forward"]["hidden_size"] == 12_288
    assert "qk_norm" not in model["block"]["attention"] and "feed_forward_moe" not in model["block"]


def megatron_rate(said: Mapping[str, Any], step: int) -> float:
    """Megatron's rate: from a start to the peak over the warm-up, whose last step is the decay's first."""
    peak, last, warmup, end = said["--lr"], said["--min-lr"], said["--lr-warmup-iters"], said["--lr-decay-iters"]
    if warmup and step <= warmup:
        return said["--lr-warmup-init"] + (peak - said["--lr-warmup-init"]) * step / warmup
    if said["--lr-decay-style"] == "constant":
        return peak
    if said["--lr-decay-style"] == "WSD":
        return last + (peak - last) * min(1.0, (end - step) / said["--lr-wsd-decay-iters"])
    return last + (peak - last) * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (end - warmup)))) / 2


def torchtitan_rate(said: Mapping[str, Any], steps: int, step: int) -> float:
    """torchtitan's share of the peak: the decay has its first change in the step after its first."""
    warmup, ratio, last = said["warmup_steps"], said.get("decay_ratio"), said["min_lr_factor"]
    falling = steps - warmup if ratio is None else round(steps * ratio)
    if step < warmup:
        return (step + 1) / warmup
    done = max(0, step - (steps - falling)) / falling if falling else 0.0
    left = (1 + math.cos(math.pi * done)) / 2 if said["decay_type"] == "cosine" else 1 - done
    return last + (1 - last) * left


def olmo_rate(said: Mapping[Any, Any], peak: float, steps: int, step: int) -> float:
    """OLMo-core's rate: steps count from 1."""
    warmup, now = said["warmup"], step + 1
    if now <= warmup:
        return peak * now / warmup
    if said[""] == "WSD":
        return said["decay_min_lr"] + (peak - said["decay_min_lr"]) * min(1.0, (steps - now) / said["decay"])
    if said[""] == "ConstantWithWarmup":
        return peak
    last = peak * said["alpha_f"]
    return last + (peak - last) * (1 + math.cos(math.pi * (now - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize("warmup", [0, 1, 20])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_learning_rate_of_every_step_is_the_same_or_said_to_be_the_next_ones(schedule, warmup, tmp_path) -> None:
    settings = {"optimizer.schedule": schedule, "optimizer.warmup_steps": warmup, "trainer.steps": 90}
    config = changed("tiny", settings)
    peak = config.optimizer.learning_rate
    files = {kind: written(kind, config, tmp_path / kind) for kind in FORMATS}
    ours = [peak * learning_rate_factor(config, step) for step in range(91)]
    later = [ours[max(step + 1, warmup) if step + 1 >= warmup else step] for step in range(90)]
    early = {
        kind: any(line.startswith("optimizer.schedule") for line in EXPORT_FORMATS[kind].lost(Job(config)))
        for kind in FORMATS
    }
    said = {
        name: float(value) if str(value).replace(".", "").replace("e-", "").isdigit() else value
        for name, value in arguments(files["megatron"]["megatron.sh"], tmp_path).items()
    }
    toml = tomllib.loads(files["torchtitan"]["torchtitan.toml"])["lr_scheduler"]
    scheduler = ran(files["olmo-core"]["olmo_core_config.py"])["TRAIN_MODULE"]["scheduler"]
    theirs = {
        "megatron": [megatron_rate(said, step) for step in range(90)],
        "torchtitan": [peak * torchtitan_rate(toml, 90, step) for step in range(90)],
        "olmo-core": [olmo_rate(scheduler, peak, 90, step) for step in range(90)],
    }
    for kind, rates in theirs.items():
        assert rates == pytest.approx(later if early[kind] else ours[:90]), kind
    assert not early["torchtitan"] and early["olmo-core"] == (schedule != "constant")


def test_a_schedule_that_falls_to_its_peak_is_constant(tmp_path) -> None:
    config = changed("tiny", {"optimizer.schedule": "wsd", "optimizer.final_lr_fraction": 1.0})
    said = ran(written("olmo-core", config, tmp_path / "o")["olmo_core_config.py"])["TRAIN_MODULE"]["scheduler"]
    assert said == {"": "ConstantWithWarmup", "warmup": 20}
    files = written("torchtitan", config, tmp_path / "t")
    assert tomllib.loads(files["torchtitan.toml"])["lr_scheduler"]["decay_ratio"] == 0.0


REFUSED = [
    (FORMATS, {"model.router.kind": "film"}, "model.router.kind=film: its routers are topk and bias_balanced"),
    (FORMATS, {"model.router.kind": "expert_choice"}, "model.router.kind=expert_choice"),
    (["megatron", "torchtitan"], {"model.qk_norm": "projection"}, "model.qk_norm=projection"),
    (["megatron", "olmo-core"], {"model.rope_theta": 10000.5}, "model.rope_theta=10000.5"),
    (["megatron"], {"model.router.kind": "bias_balanced"}, "model.router.scores=softmax"),
    (["megatron"], {"model.router.scores": "sigmoid"}, "model.router.renormalise=False"),
    (["megatron"], {"model.router.renormalise": True, "model.top_k": 1}, "model.router.renormalise=True"),
    (["megatron"], GATES | {"model.top_k": 1}, "model.router.renormalise=True"),
    (["torchtitan"], {"model.dense_layers": [0], "model.dense_width": 64}, "model.dense_layers=(0,)"),
    (["torchtitan", "olmo-core"], {"model.qkv_bias": True}, "model.qkv_bias=True"),
    (["torchtitan", "olmo-core"], {"model.shared_expert_width": 40}, "model.shared_expert_width=40"),
    (["olmo-core"], {"model.shared_expert_width": 48}, "model.shared_expert_width=48"),
    (["olmo-core"], {"model.router.gate_scale": 2.0}, "model.router.gate_scale=2.0"),
    (["olmo-core"], {"model.tied_embeddings": True}, "model.tied_embeddings=True"),
]


@pytest.mark.parametrize(("kinds", "settings", "said"), REFUSED)
def test_a_model_that_would_be_another_is_refused_before_anything_is_written(kinds, settings, said, tmp_path) -> None:
    for kind in FORMATS:
        if kind not in kinds:
            write_format(kind, Job(changed("tiny", settings)), tmp_path / kind)
            continue
        with pytest.raises(UserError) as caught:
            write_format(kind, Job(changed("tiny", settings)), tmp_path / kind)
        assert f"{EXPORT_FORMATS[kind].trainer} can't express {said}" in str(caught.value)
        assert not (tmp_path / kind).exists()
    with pytest.raises(UserError, match="--format: unknown 'megatro': did you mean megatron"):
        write_format("megatro", Job(preset("tiny")), tmp_path)


LOST = [
    ({}, ["objective.kind=masked_diffusion", "model.causal=False"], FORMATS),
    ({}, ["objective.z_loss_weight=0.001: it has no router z-loss"], ["torchtitan"]),
    ({}, ["objective.load_balancing_weight=0.01: the shares of experts"], ["megatron", "olmo-core"]),
    (DENSE | CAUSAL, ["model.eos_id=257: sequences start with it here"], FORMATS),
    ({"model.shifted": True}, ["model.shifted=True"], FORMATS),
    ({"model.block_length": 16}, ["model.block_length=16"], FORMATS),
    ({"data.variable_length_share": 0.1}, ["data.variable_length_share=0.1"], FORMATS),
    ({"trainer.initial_weights": "a\nrm -rf b"}, ["trainer.initial_weights=a\\nrm -rf b"], FORMATS),
    (SPREAD | {"deepspeed.stage": 2}, ["deepspeed.stage=2"], FORMATS),
    ({"optimizer.warmup_steps": 500}, ["optimizer.warmup_steps=500"], ["torchtitan"]),
    (GATES, ["model.router.scores=sigmoid: 1e-7"], ["olmo-core"]),
    (
        GATES | {"model.router.kind": "bias_balanced"},
        ["objective.load_balancing_weight=0.01: the loss there"],
        ["megatron"],
    ),
]


@pytest.mark.parametrize(("settings", "said", "kinds"), LOST)
def test_what_is_lost_is_said_in_every_file(settings, said, kinds, tmp_path) -> None:
    for kind in FORMATS:
        lost = write_format(kind, Job(changed("tiny", settings)), tmp_path / kind)
        for part in said:
            assert any(line.startswith(part) for line in lost) == (kind in kinds), (kind, part)
        for path in (tmp_path / kind).iterdir():
            text = path.read_text()
            assert all(f"# - {line}\n" in text for line in lost), path
            assert f"It wasn't run with {EXPORT_FORMATS[kind].trainer}." in text
            assert "\nrm" not in text


def test_a_causal_dense_model_loses_no_objective() -> None:
    lines = EXPORT_FORMATS["megatron"].lost(Job(changed("tiny", DENSE | CAUSAL)))
    assert not [line for line in lines if line.startswith(("objective", "model.causal"))]


def test_source_is_what_python_reads_back() -> None:
    value = {"a": [1.5, None, "x'\n"], "b": Name("f")}
    assert eval(source(value), {"f": 3}) == {"a": [1.5, None, "x'\n"], "b": 3}
    assert source(Call("f", {})) == "f()"
    assert source(Call("f", {"a": Call("g", {"b": True})})) == "f(\n    a=g(\n        b=True,\n    ),\n)"
