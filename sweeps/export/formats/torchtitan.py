"""torchtitan: a TOML of the job, and a module that adds the model to those of Qwen3, dense or a mixture.

Source: torchtitan/config/job_config.py, components/lr_scheduler.py, models/qwen3/model/{args,model}.py and
models/moe/moe.py of torchtitan 0.2, the last versions that read a TOML. The model's sizes aren't in the TOML there:
experimental.custom_import loads the module that has them. The learning rate of every step is the same as here. RoPE is too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.config.loading import nested
from core.config.run import decay_steps
from sweeps.export.python_source import Call, source
from sweeps.export.trainer_format import (
    EXPORT_FORMATS,
    FULLY_SHARDED,
    IGNORED,
    NORM_PER_HEAD,
    OBJECTIVE,
    ExportFormat,
    Job,
    Limit,
    Option,
    comment,
    copied,
    differs,
    fixed,
    router_kinds,
    values,
)

MODULE, FLAVOR = "torchtitan_model", "exported"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def _decay_ratio(job: Job) -> float | None:
    """Share of the steps in which the rate falls; None: all after the warm-up."""
    if job.decay == "wsd":
        return decay_steps(job.config) / job.config.trainer.steps
    return None if job.decay == "cosine" else 0.0


def _bias_rate(job: Job) -> float | None:
    router = job.model.router
    return router.bias_update_rate if router.kind == "bias_balanced" else None


JOB = (
    fixed("model.name", "qwen3"),
    fixed("model.flavor", FLAVOR),
    fixed("experimental.custom_import", MODULE),
    fixed("optimizer.name", "AdamW"),
    copied("optimizer.lr", "optimizer.learning_rate"),
    copied("optimizer.beta1", "optimizer.beta1"),
    copied("optimizer.beta2", "optimizer.beta2"),
    fixed("optimizer.eps", 1e-8),
    copied("optimizer.weight_decay", "optimizer.weight_decay"),
    copied("lr_scheduler.warmup_steps", "optimizer.warmup_steps"),
    Option("lr_scheduler.decay_ratio", ("optimizer.schedule", "optimizer.decay_fraction"), _decay_ratio),
    Option("lr_scheduler.decay_type", (), lambda job: "cosine" if job.decay == "cosine" else "linear"),
    copied("lr_scheduler.min_lr_factor", "optimizer.final_lr_fraction"),
    Option("training.local_batch_size", ("trainer.accumulate",), lambda job: job.micro_batch),
    copied("training.global_batch_size", "trainer.batch_size"),
    copied("training.seq_len", "data.sequence_length"),
    copied("training.steps", "trainer.steps"),
    Option("training.max_norm", ("optimizer.gradient_clip",),
           lambda job: job.config.optimizer.gradient_clip or float("inf")),
    Option("training.mixed_precision_param", ("trainer.precision",), lambda job: DTYPES[job.config.trainer.precision]),
    copied("debug.seed", "seed"),
    copied("parallelism.expert_parallel_degree", "deepspeed.expert_parallel"),
    Option("activation_checkpoint.mode", ("trainer.activation_checkpointing",),
           lambda job: "full" if job.config.trainer.activation_checkpointing else "none"),
    copied("compile.enable", "trainer.compile"),
    copied("metrics.log_freq", "trainer.log_every"),
    Option("checkpoint.enable", (), lambda job: job.config.trainer.checkpoint_every > 0),
    Option("checkpoint.interval", ("trainer.checkpoint_every",), lambda job: job.config.trainer.checkpoint_every or None),
)  # fmt: skip

MODEL = (
    copied("dim", "model.hidden_size"),
    copied("n_layers", "model.num_layers"),
    copied("n_heads", "model.num_heads"),
    Option("n_kv_heads", ("model.num_kv_heads",), lambda job: job.model.kv_heads),
    copied("vocab_size", "model.vocab_size"),
    copied("head_dim", "model.head_dim"),
    Option("hidden_dim", ("model.dense_width", "model.expert_width"),
           lambda job: job.model.dense_width or job.model.width_of_expert),
    copied("norm_eps", "model.norm_eps"),
    copied("rope_theta", "model.rope_theta"),
    Option("qk_norm", ("model.qk_norm",), lambda job: job.model.qk_norm == "head"),
    copied("max_seq_len", "model.max_positions"),
    fixed("depth_init", False),
    copied("eos_id", "model.eos_id"),
    copied("enable_weight_tying", "model.tied_embeddings"),
    Option("moe_enabled", ("model.num_experts",), lambda job: job.model.num_experts > 0),
    Option("moe_inter_dim", ("model.expert_width", "model.granularity"),
           lambda job: job.model.width_of_expert if job.model.num_experts else None),
)  # fmt: skip

MIXTURE = (
    Option("num_experts", ("model.num_experts", "model.granularity"), lambda job: job.model.experts),
    Option("num_shared_experts", ("model.shared_expert_width",), lambda job: int(job.shared_experts)),
    Option("top_k", ("model.top_k", "model.granularity"), lambda job: job.model.experts_per_token),
    copied("score_func", "model.router.scores"),
    copied("route_norm", "model.router.renormalise"),
    copied("route_scale", "model.router.gate_scale"),
    fixed("score_before_experts", False),
    # its grouped matmul is in bf16
    Option("use_grouped_mm", ("trainer.precision",), lambda job: job.config.trainer.precision == "bf16"),
)

BALANCING = Option(
    "load_balance_coeff", ("model.router.kind", "model.router.bias_update_rate"), _bias_rate
)  # None counts


def _files(job: Job, head: Sequence[str]) -> Mapping[str, str]:
    return {"torchtitan.toml": comment(head) + _toml(values(JOB, job)), f"{MODULE}.py": _module(job, head)}


def _toml(flat: Mapping[str, Any]) -> str:
    sections = nested(flat)
    return "\n".join(
        f"[{section}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in content.items())
        for section, content in sections.items()
    )


def _value(value: Any) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _module(job: Job, head: Sequence[str]) -> str:
    arguments = values(MODEL, job)
    if job.model.num_experts:
        arguments["moe_args"] = Call("MoEArgs", values(MIXTURE, job) | {BALANCING.name: BALANCING.value(job)})
    return (
        f"{comment(head)}\n"
        "from torchtitan.models.moe import MoEArgs\n"
        "from torchtitan.models.qwen3.model.args import Qwen3ModelArgs\n"
        "from torchtitan.protocols.train_spec import get_train_spec\n\n"
        f"MODEL = {source(Call('Qwen3ModelArgs', arguments))}\n"
        f'get_train_spec("qwen3").model_args["{FLAVOR}"] = MODEL\n'
    )


EXPORT_FORMATS.add(
    ExportFormat(
        "torchtitan",
        "torchtitan",
        "options of torchtitan 0.2",
        (*JOB, *MODEL, *MIXTURE, BALANCING),
        (
            *OBJECTIVE,
            Limit(
                ("objective.load_balancing_weight",),
                lambda job: job.load_balancing > 0,
                "it has no load-balancing loss; it balances by biases alone (model.router.kind=bias_balanced)",
            ),
            Limit(
                ("objective.z_loss_weight",),
                lambda job: job.z_loss > 0,
                "it has no router z-loss",
            ),
            Limit(
                ("optimizer.warmup_steps",),
                lambda job: job.config.optimizer.warmup_steps > job.config.trainer.steps,
                "the warm-up ends with the last step there",
            ),
            Limit(
                ("optimizer.weight_decay",),
                lambda job: job.config.optimizer.weight_decay > 0,
                "norms' weights decay too there",
            ),
            Limit(
                ("model.init_std",),
                lambda job: True,
                "weights start as those of torchtitan's Qwen3: truncated at 0.02, the embedding at 1",
            ),
            FULLY_SHARDED,
        ),
        (
            router_kinds("topk", "bias_balanced"),
            differs("model.dense_layers", (), "all layers are alike there"),
            differs("model.qkv_bias", False, "projections have no biases there"),
            NORM_PER_HEAD,
            Limit(
                ("model.shared_expert_width",),
                lambda job: job.shared_experts % 1 != 0,
                "it is a multiple of an expert's width there",
            ),
        ),
        IGNORED,
        _files,
        "PYTHONPATH=. torchrun --nproc-per-node 8 -m torchtitan.train --job.config_file torchtitan.toml "
        "--model.hf_assets_path FOLDER --training.dataset NAME",
    )
)
