"""Megatron-LM: a script of pretrain_gpt.py's arguments, and the same as a YAML for Megatron-Bridge.

Source: megatron/core/transformer/moe/{moe_utils,router}.py and optimizer_param_scheduler.py of Megatron-LM at core 0.16;
src/megatron/bridge/training/config.py of Megatron-Bridge. The auxiliary losses of all layers are added up there, where here
they are averaged. RoPE, the starting weights' deviations and the matrices that decay are the same.
"""

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby

import yaml

from core.config.loading import nested
from core.config.run import decay_steps
from sweeps.export.trainer_format import (
    EARLY_DECAY,
    EXPORT_FORMATS,
    IGNORED,
    NORM_PER_HEAD,
    OBJECTIVE,
    SHARES_OF_MICRO_BATCH,
    WHOLE_THETA,
    ExportFormat,
    Job,
    Limit,
    Option,
    comment,
    copied,
    fixed,
    if_sparse,
    router_kinds,
)

SCHEDULES = {"cosine": "cosine", "wsd": "WSD", "constant": "constant"}
EXPERTS = ("model.num_experts", "model.granularity")
# The YAML overrides a recipe, which may have what the model lacks.
SAID_EMPTY = (
    "model.num_moe_experts", "model.moe_shared_expert_intermediate_size", "model.moe_router_topk_scaling_factor",
    "model.moe_z_loss_coeff", "model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers",
    "mixed_precision",
)  # fmt: skip


def _layers(job: Job) -> list[int] | None:
    """1 for each sparse layer, 0 for each dense one; None where all are sparse."""
    sparse = job.model.sparse_layers
    return [int(i in sparse) for i in range(job.model.num_layers)] if job.model.dense_layers else None


def _layer_pattern(job: Job) -> str | None:
    layers = _layers(job)
    if layers is None:
        return None
    return f"({'+'.join(f'[{bit}]*{len(list(run))}' for bit, run in groupby(layers))})"


def _per_layer(weight: float, job: Job) -> float:
    """A loss's weight in each layer, of a loss that is averaged over the sparse ones here."""
    return weight / max(1, len(job.model.sparse_layers))


def _warmup(job: Job) -> int:
    """Steps from the first, which has the rate that the warm-up starts from, to the one that has the peak."""
    return max(0, job.config.optimizer.warmup_steps - 1)


def _warmup_start(job: Job) -> float:
    optimizer = job.config.optimizer
    return optimizer.learning_rate / optimizer.warmup_steps if optimizer.warmup_steps > 1 else 0.0


def _decay_end(job: Job) -> int:
    """Step of the last rate. A cosine begins with the warm-up's last step there, so that it has to end sooner too."""
    steps, warmup = job.config.trainer.steps, job.config.optimizer.warmup_steps
    return max(steps - (job.decay == "cosine" and warmup > 0), warmup)


def _pre_softmax(job: Job) -> bool:
    router = job.model.router
    return router.scores == "softmax" and not router.renormalise


def _is_bias_balanced(job: Job) -> bool:
    return bool(job.model.num_experts) and job.model.router.kind == "bias_balanced"


def _has_gates(job: Job) -> bool:
    """True for gates that Megatron has: it renormalises sigmoid scores of several experts, and never that of one."""
    router, several = job.model.router, job.model.experts_per_token > 1
    return router.renormalise == several if router.scores == "sigmoid" else several or not router.renormalise


MODEL = (
    copied("--num-layers", "model.num_layers", "model.num_layers"),
    copied("--hidden-size", "model.hidden_size", "model.hidden_size"),
    Option("--ffn-hidden-size", ("model.dense_width", "model.expert_width"),
           lambda job: job.model.dense_width or job.model.width_of_expert, "model.ffn_hidden_size"),
    copied("--num-attention-heads", "model.num_heads", "model.num_attention_heads"),
    copied("--kv-channels", "model.head_dim", "model.kv_channels"),
    Option("--group-query-attention", (), lambda job: job.model.kv_heads < job.model.num_heads),
    Option("--num-query-groups", ("model.num_kv_heads",), lambda job: job.model.kv_heads, "model.num_query_groups"),
    Option("--qk-layernorm", ("model.qk_norm",), lambda job: job.model.qk_norm == "head", "model.qk_layernorm"),
    fixed("--disable-bias-linear", True),
    fixed("", False, "model.add_bias_linear"),
    Option("--add-qkv-bias", ("model.qkv_bias",), lambda job: job.model.qkv_bias, "model.add_qkv_bias"),
    fixed("--swiglu", True, "model.gated_linear_unit"),
    fixed("--normalization", "RMSNorm", "model.normalization"),
    copied("--norm-epsilon", "model.norm_eps", "model.layernorm_epsilon"),
    fixed("--position-embedding-type", "rope", "model.position_embedding_type"),
    Option("--rotary-base", ("model.rope_theta",), lambda job: round(job.model.rope_theta), "model.rotary_base"),
    copied("--max-position-embeddings", "model.max_positions"),
    Option("--untie-embeddings-and-output-weights", (), lambda job: not job.model.tied_embeddings),
    copied("", "model.tied_embeddings", "model.share_embeddings_and_output_weights"),
    fixed("--tokenizer-type", "NullTokenizer", "tokenizer.tokenizer_type"),
    # NullTokenizer adds an end token of its own
    Option("--vocab-size", ("model.vocab_size",), lambda job: job.model.vocab_size - 1, "tokenizer.vocab_size"),
    copied("", "model.vocab_size", "model.vocab_size"),
    fixed("--make-vocab-size-divisible-by", 1, "model.make_vocab_size_divisible_by"),
    copied("--init-method-std", "model.init_std", "model.init_method_std"),
    fixed("--attention-dropout", 0.0, "model.attention_dropout"),
    fixed("--hidden-dropout", 0.0, "model.hidden_dropout"),
)  # fmt: skip

MIXTURE = (
    if_sparse("--num-experts", EXPERTS, lambda job: job.model.experts, "model.num_moe_experts"),
    if_sparse("--moe-layer-freq", ("model.dense_layers",), _layer_pattern, ""),
    if_sparse("", ("model.dense_layers",), lambda job: _layers(job) or 1, "model.moe_layer_freq"),
    if_sparse("--moe-ffn-hidden-size", ("model.expert_width", "model.granularity"),
               lambda job: job.model.width_of_expert, "model.moe_ffn_hidden_size"),
    if_sparse("--moe-shared-expert-intermediate-size", ("model.shared_expert_width",),
               lambda job: job.model.shared_expert_width or None, "model.moe_shared_expert_intermediate_size"),
    if_sparse("--moe-router-topk", ("model.top_k", "model.granularity"),
               lambda job: job.model.experts_per_token, "model.moe_router_topk"),
    if_sparse("--moe-router-score-function", ("model.router.scores",),
               lambda job: job.model.router.scores, "model.moe_router_score_function"),
    if_sparse("--moe-router-pre-softmax", ("model.router.renormalise",), _pre_softmax, "model.moe_router_pre_softmax"),
    if_sparse("--moe-router-topk-scaling-factor", ("model.router.gate_scale",),
               lambda job: job.model.router.gate_scale if job.model.router.gate_scale != 1 else None,
               "model.moe_router_topk_scaling_factor"),
    if_sparse("--moe-router-enable-expert-bias", ("model.router.kind",),
               _is_bias_balanced, "model.moe_router_enable_expert_bias"),
    if_sparse("--moe-router-bias-update-rate", ("model.router.bias_update_rate",),
               lambda job: job.model.router.bias_update_rate if _is_bias_balanced(job) else None,
               "model.moe_router_bias_update_rate"),
    if_sparse("--moe-router-load-balancing-type", (), lambda job: "aux_loss" if job.load_balancing else "none",
               "model.moe_router_load_balancing_type"),
    if_sparse("--moe-aux-loss-coeff", ("objective.load_balancing_weight",),
               lambda job: _per_layer(job.load_balancing, job), "model.moe_aux_loss_coeff"),
    if_sparse("--moe-z-loss-coeff", ("objective.z_loss_weight",),
               lambda job: _per_layer(job.z_loss, job) or None, "model.moe_z_loss_coeff"),
    if_sparse("--moe-router-dtype", (), "fp32", "model.moe_router_dtype"),
    if_sparse("--moe-token-dispatcher-type", (), "alltoall", "model.moe_token_dispatcher_type"),
    if_sparse("--moe-grouped-gemm", (), True, "model.moe_grouped_gemm"),
    if_sparse("--expert-model-parallel-size", ("deepspeed.expert_parallel",),
               lambda job: job.config.deepspeed.expert_parallel,
               "model.expert_model_parallel_size"),
)  # fmt: skip

TRAINING = (
    copied("--seq-length", "data.sequence_length", "model.seq_length"),
    copied("", "data.sequence_length", "dataset.seq_length"),
    Option("--micro-batch-size", ("trainer.accumulate",), lambda job: job.micro_batch, "train.micro_batch_size"),
    copied("--global-batch-size", "trainer.batch_size", "train.global_batch_size"),
    copied("--train-iters", "trainer.steps", "train.train_iters"),
    fixed("--optimizer", "adam", "optimizer.optimizer"),
    copied("--lr", "optimizer.learning_rate", "optimizer.lr"),
    Option("--min-lr", ("optimizer.final_lr_fraction",),
           lambda job: job.config.optimizer.learning_rate * job.config.optimizer.final_lr_fraction, "optimizer.min_lr"),
    Option("--lr-decay-style", ("optimizer.schedule",), lambda job: SCHEDULES[job.decay], "scheduler.lr_decay_style"),
    Option("--lr-decay-iters", (), _decay_end, "scheduler.lr_decay_iters"),
    Option("--lr-warmup-iters", ("optimizer.warmup_steps",), _warmup, "scheduler.lr_warmup_iters"),
    Option("--lr-warmup-init", (), _warmup_start, "scheduler.lr_warmup_init"),
    Option("--lr-wsd-decay-style", (), lambda job: "linear" if job.decay == "wsd" else None,
           "scheduler.lr_wsd_decay_style"),
    Option("--lr-wsd-decay-iters", ("optimizer.decay_fraction",),
           lambda job: decay_steps(job.config) if job.decay == "wsd" else None, "scheduler.lr_wsd_decay_iters"),
    copied("--weight-decay", "optimizer.weight_decay", "optimizer.weight_decay"),
    copied("--adam-beta1", "optimizer.beta1", "optimizer.adam_beta1"),
    copied("--adam-beta2", "optimizer.beta2", "optimizer.adam_beta2"),
    fixed("--adam-eps", 1e-8, "optimizer.adam_eps"),
    copied("--clip-grad", "optimizer.gradient_clip", "optimizer.clip_grad"),
    Option("--bf16", ("trainer.precision",), lambda job: job.config.trainer.precision == "bf16"),
    Option("", (), lambda job: "bf16_mixed" if job.config.trainer.precision == "bf16" else None, "mixed_precision"),
    Option("--recompute-granularity", ("trainer.activation_checkpointing",),
           lambda job: "full" if job.config.trainer.activation_checkpointing else None, "model.recompute_granularity"),
    Option("--recompute-method", (), lambda job: "uniform" if job.config.trainer.activation_checkpointing else None,
           "model.recompute_method"),
    Option("--recompute-num-layers", (), lambda job: 1 if job.config.trainer.activation_checkpointing else None,
           "model.recompute_num_layers"),
    Option("--use-distributed-optimizer", ("deepspeed.stage",),
           lambda job: bool(job.stage) or None, "ddp.use_distributed_optimizer"),
    copied("--log-interval", "trainer.log_every", "logger.log_interval"),
    Option("--save-interval", ("trainer.checkpoint_every",), lambda job: job.config.trainer.checkpoint_every or None,
           "checkpoint.save_interval"),
    Option("--seed", ("seed",), lambda job: job.config.seed + 1, "rng.seed"),  # Megatron refuses 0
)  # fmt: skip


def _files(job: Job, head: Sequence[str]) -> Mapping[str, str]:
    return {"megatron.sh": _script(job, head), "megatron_bridge.yaml": _bridge(job, head)}


def _script(job: Job, head: Sequence[str]) -> str:
    found = {option.name: option.value(job) for option in OPTIONS if option.name}
    arguments = [
        name if value is True else f"{name} {shlex.quote(str(value))}"
        for name, value in found.items()
        if value is not None and value is not False
    ]
    lines = "\n".join(f"    {argument}" for argument in arguments)
    return (
        f"#!/bin/bash\n{comment(head)}set -euo pipefail\narguments=(\n{lines}\n)\n"
        f'exec torchrun --nproc-per-node "${{GPUS:-{min(job.devices, 8)}}}" ${{TORCHRUN_OPTIONS:-}} \\\n'
        '    "${MEGATRON:?set it to the folder of Megatron-LM}/pretrain_gpt.py" "${arguments[@]}" "$@"\n'
    )


def _bridge(job: Job, head: Sequence[str]) -> str:
    found = {option.twin: option.value(job) for option in OPTIONS if option.twin}
    said = nested({name: value for name, value in found.items() if value is not None or name in SAID_EMPTY})
    base = "Overrides of a recipe of a SwiGLU model, such as Qwen3's: YAML can't name its activation function."
    return comment([*head, base]) + yaml.safe_dump(said, sort_keys=False)


OPTIONS = (*MODEL, *MIXTURE, *TRAINING)
EXPORT_FORMATS.add(
    ExportFormat(
        "megatron",
        "Megatron-LM",
        "options of core 0.16 and of Megatron-Bridge, November 2026",
        OPTIONS,
        (
            *OBJECTIVE,
            SHARES_OF_MICRO_BATCH,
            Limit(
                ("objective.load_balancing_weight",),
                lambda job: _is_bias_balanced(job) and job.load_balancing > 0,
                "the loss there counts the experts that a token would have without biases",
            ),
            Limit(
                ("optimizer.schedule", "optimizer.warmup_steps"),
                lambda job: job.decay == "cosine" and job.config.optimizer.warmup_steps > 0,
                EARLY_DECAY,
            ),
            Limit(
                ("seed",),
                lambda job: True,
                "it is raised by one, since Megatron refuses 0; weights and data are drawn otherwise",
            ),
            Limit(
                ("deepspeed.stage",),
                lambda job: job.stage is not None and job.stage > 1,
                "optimizer states alone are spread",
            ),
        ),
        (
            router_kinds("topk", "bias_balanced"),
            Limit(
                ("model.router.scores",),
                lambda job: _is_bias_balanced(job) and job.model.router.scores == "softmax",
                "experts' biases need sigmoid scores there",
            ),
            Limit(
                ("model.router.renormalise",),
                lambda job: bool(job.model.num_experts) and not _has_gates(job),
                "softmax gates of a single expert can't be renormalised there, and sigmoid gates of several always are",
            ),
            NORM_PER_HEAD,
            WHOLE_THETA,
        ),
        (*IGNORED, "trainer.compile"),
        _files,
        "MEGATRON=/path/to/Megatron-LM bash megatron.sh --data-path PREFIX --split 99,1,0 --eval-iters 10 --save FOLDER",
    )
)
