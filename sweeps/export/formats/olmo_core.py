"""OLMo-core: a Python module with the model, the train module and the sizes of batches.

Source: src/olmo_core/nn/{transformer,attention,moe}, optim/scheduler.py and train/train_module/transformer/config.py of
OLMo-core 2. Auxiliary losses are divided by all layers there, and by the sparse ones here; a shared expert is averaged with
the chosen ones there, and added here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from core.config.loading import nested
from core.config.run import decay_steps
from sweeps.export.python_source import Call, Name, calls, source
from sweeps.export.trainer_format import (
    EARLY_DECAY,
    EXPORT_FORMATS,
    FULLY_SHARDED,
    IGNORED,
    OBJECTIVE,
    SHARES_OF_MICRO_BATCH,
    WHOLE_THETA,
    ExportFormat,
    Job,
    Limit,
    Option,
    comment,
    copied,
    differs,
    fixed,
    if_sparse,
    router_kinds,
    values,
)

FUNCTIONS = {
    "model": "TransformerConfig",
    "model.block": "TransformerBlockConfig",
    "model.block.attention": "AttentionConfig",
    "model.block.attention.rope": "RoPEConfig",
    "model.block.attention.qk_norm": "LayerNormConfig",
    "model.block.layer_norm": "LayerNormConfig",
    "model.block.feed_forward": "FeedForwardConfig",
    "model.block.feed_forward_moe": "MoEConfig",
    "model.block.feed_forward_moe.router": "MoERouterConfig",
    "model.lm_head": "LMHeadConfig",
    "model.lm_head.layer_norm": "LayerNormConfig",
    "train": "TransformerTrainModuleConfig",
    "train.optim": "AdamWConfig",
    "train.dp_config": "TransformerDataParallelConfig",
    "train.ep_config": "TransformerExpertParallelConfig",
    "train.ac_config": "TransformerActivationCheckpointingConfig",
}
IMPORTS = """\
from olmo_core.config import DType
from olmo_core.distributed.parallel import DataParallelType
from olmo_core.nn.attention import AttentionConfig
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.layer_norm import LayerNormConfig, LayerNormType
from olmo_core.nn.lm_head import LMHeadConfig
from olmo_core.nn.moe import MoEConfig, MoERouterConfig, MoERouterGatingFunction, MoEType
from olmo_core.nn.rope import RoPEConfig
from olmo_core.nn.transformer import TransformerBlockConfig, TransformerBlockType, TransformerConfig, TransformerType
from olmo_core.nn.transformer.config import TransformerActivationCheckpointingMode
from olmo_core.optim import WSD, AdamWConfig, ConstantWithWarmup, CosWithWarmup, OptimGroupOverride
from olmo_core.train import Duration
from olmo_core.train.train_module import (
    TransformerActivationCheckpointingConfig,
    TransformerDataParallelConfig,
    TransformerExpertParallelConfig,
    TransformerTrainModuleConfig,
)
"""
RMS = Name("LayerNormType.rms")
MOE, ATTENTION = "model.block.feed_forward_moe", "model.block.attention"


def _in_moe(name: str, keys: tuple[str, ...], value: Any) -> Option:
    """An option of MoEConfig."""
    return if_sparse(f"{MOE}.{name}", keys, value)


def _if_dense(name: str, keys: tuple[str, ...], value: Any) -> Option:
    """An option of dense models."""
    return Option(name, keys, lambda job: None if job.model.num_experts else (value(job) if callable(value) else value))


def _if_normed(name: str, value: Any) -> Option:
    """An option of models with QK-norm."""
    return Option(
        f"{ATTENTION}.{name}",
        (),
        lambda job: None if job.model.qk_norm == "none" else value(job) if callable(value) else value,
    )


def _over_all_layers(weight: float, job: Job) -> float | None:
    """A loss's weight that is to be divided by all layers, of a loss that is averaged over the sparse ones here."""
    return weight * job.model.num_layers / len(job.model.sparse_layers) if weight else None


def _overrides(job: Job) -> Any:
    """Blocks of the dense layers of a sparse model."""
    if not (job.model.num_experts and job.model.dense_layers):
        return None
    flat = {name: value for name, value in values(MODEL, job).items() if name.startswith("model.block.")}
    flat = {name: value for name, value in flat.items() if not name.startswith(MOE)}
    flat["model.block.name"] = Name("TransformerBlockType.default")
    flat["model.block.feed_forward.hidden_size"] = job.model.dense_width
    flat["model.block.feed_forward.bias"] = False
    block = calls(nested(flat)["model"]["block"], FUNCTIONS, "model.block")
    return dict.fromkeys(job.model.dense_layers, block)


def _scheduler(job: Job) -> Call:
    optimizer, warmup = job.config.optimizer, {"warmup": job.config.optimizer.warmup_steps}
    if job.decay == "cosine":
        return Call("CosWithWarmup", warmup | {"alpha_f": optimizer.final_lr_fraction})
    if job.decay == "wsd":
        last = optimizer.learning_rate * optimizer.final_lr_fraction
        return Call("WSD", warmup | {"decay": decay_steps(job.config), "decay_fraction": None, "decay_min_lr": last})
    return Call("ConstantWithWarmup", warmup)


NO_DECAY = [Call("OptimGroupOverride", {"params": ["*norm.weight"], "overrides": {"weight_decay": 0.0}})]

MODEL = (
    Option("model.name", (), lambda job: Name(f"TransformerType.{'moe' if job.model.num_experts else 'default'}")),
    copied("model.d_model", "model.hidden_size"),
    copied("model.vocab_size", "model.vocab_size"),
    copied("model.n_layers", "model.num_layers"),
    copied("model.init_std", "model.init_std"),
    copied("model.init_seed", "seed"),
    Option("model.block.name", (), lambda job: Name(f"TransformerBlockType.{'moe' if job.model.num_experts else 'default'}")),
    copied(f"{ATTENTION}.n_heads", "model.num_heads"),
    Option(f"{ATTENTION}.n_kv_heads", ("model.num_kv_heads",), lambda job: job.model.kv_heads),
    Option(f"{ATTENTION}.head_dim", ("model.head_dim",),
           lambda job: None if job.model.head_dim * job.model.num_heads == job.model.hidden_size else job.model.head_dim),
    fixed(f"{ATTENTION}.bias", False),
    Option(f"{ATTENTION}.rope.theta", ("model.rope_theta",), lambda job: round(job.model.rope_theta)),
    _if_normed("qk_norm.name", RMS),
    _if_normed("qk_norm.eps", lambda job: job.model.norm_eps),
    _if_normed("qk_norm.bias", False),
    Option(f"{ATTENTION}.use_head_qk_norm", ("model.qk_norm",), lambda job: job.model.qk_norm == "head" or None),
    fixed("model.block.layer_norm.name", RMS),
    copied("model.block.layer_norm.eps", "model.norm_eps"),
    fixed("model.block.layer_norm.bias", False),
    _if_dense("model.block.feed_forward.hidden_size", ("model.dense_width",), lambda job: job.model.dense_width),
    _if_dense("model.block.feed_forward.bias", (), False),
    _in_moe("name", (), Name("MoEType.dropless")),
    _in_moe("num_experts", ("model.num_experts", "model.granularity"), lambda job: job.model.experts),
    _in_moe("hidden_size", ("model.expert_width", "model.granularity"), lambda job: job.model.width_of_expert),
    _in_moe("router.top_k", ("model.top_k", "model.granularity"), lambda job: job.model.experts_per_token),
    _in_moe("router.gating_function", ("model.router.scores",),
               lambda job: Name(f"MoERouterGatingFunction.{job.model.router.scores}")),
    _in_moe("router.normalize_expert_weights", ("model.router.renormalise",),
               lambda job: 1.0 if job.model.router.renormalise else None),
    _in_moe("router.bias_gamma", ("model.router.kind", "model.router.bias_update_rate"),
               lambda job: job.model.router.bias_update_rate if job.model.router.kind == "bias_balanced" else None),
    _in_moe("router.dtype", (), Name("DType.float32")),
    _in_moe("z_loss_weight", ("objective.z_loss_weight",),
               lambda job: _over_all_layers(job.z_loss, job)),
    _in_moe("scale_loss_by_num_layers", (), True),
    fixed("model.lm_head.layer_norm.name", RMS),
    copied("model.lm_head.layer_norm.eps", "model.norm_eps"),
    fixed("model.lm_head.layer_norm.bias", False),
    fixed("model.lm_head.bias", False),
)  # fmt: skip

TRAIN = (
    Option("train.rank_microbatch_size", ("trainer.accumulate",),
           lambda job: job.micro_batch * job.config.data.sequence_length),
    copied("train.max_sequence_length", "data.sequence_length"),
    copied("train.optim.lr", "optimizer.learning_rate"),
    Option("train.optim.betas", ("optimizer.beta1", "optimizer.beta2"),
           lambda job: [job.config.optimizer.beta1, job.config.optimizer.beta2]),
    fixed("train.optim.eps", 1e-8),
    copied("train.optim.weight_decay", "optimizer.weight_decay"),
    fixed("train.optim.group_overrides", NO_DECAY),
    Option("train.scheduler", ("optimizer.schedule", "optimizer.warmup_steps", "optimizer.decay_fraction",
                               "optimizer.final_lr_fraction"), _scheduler),
    Option("train.max_grad_norm", ("optimizer.gradient_clip",), lambda job: job.config.optimizer.gradient_clip or None),
    copied("train.compile_model", "trainer.compile"),
    fixed("train.dp_config.name", Name("DataParallelType.fsdp")),
    Option("train.dp_config.param_dtype", ("trainer.precision",),
           lambda job: Name(f"DType.{'bfloat16' if job.config.trainer.precision == 'bf16' else 'float32'}")),
    fixed("train.dp_config.reduce_dtype", Name("DType.float32")),
    Option("train.ep_config.degree", ("deepspeed.expert_parallel",),
           lambda job: job.config.deepspeed.expert_parallel if job.config.deepspeed.expert_parallel > 1 else None),
    Option("train.ac_config.mode", ("trainer.activation_checkpointing",),
           lambda job: Name("TransformerActivationCheckpointingMode.full")
           if job.config.trainer.activation_checkpointing else None),
)  # fmt: skip

# None is said too: these are off then.
BALANCING = _in_moe("lb_loss_weight", ("objective.load_balancing_weight",),
                       lambda job: _over_all_layers(job.load_balancing, job))  # fmt: skip
DENSE_LAYERS = Option("block_overrides", ("model.dense_layers", "model.dense_width"), _overrides)
SIZES = (
    Option("SEQUENCE_LENGTH", ("data.sequence_length",), lambda job: job.config.data.sequence_length),
    Option("GLOBAL_BATCH_TOKENS", ("trainer.batch_size",),
           lambda job: job.config.trainer.batch_size * job.config.data.sequence_length),
    Option("MAX_DURATION", ("trainer.steps",), lambda job: Name(f"Duration.steps({job.config.trainer.steps})")),
    Option("METRICS_COLLECT_INTERVAL", ("trainer.log_every",), lambda job: job.config.trainer.log_every),
    Option("SAVE_INTERVAL", ("trainer.checkpoint_every",), lambda job: job.config.trainer.checkpoint_every or None),
    Option("DATA_SEED", ("seed",), lambda job: job.config.seed),
)  # fmt: skip


def _files(job: Job, head: Sequence[str]) -> Mapping[str, str]:
    flat = values((*MODEL, *TRAIN), job)
    if job.model.num_experts:
        flat[BALANCING.name] = BALANCING.value(job)
    said = nested(flat)
    if overrides := DENSE_LAYERS.value(job):
        said["model"][DENSE_LAYERS.name] = overrides
    sizes = "".join(f"{name} = {source(value)}\n" for name, value in values(SIZES, job).items())
    return {
        "olmo_core_config.py": f"{comment(head)}\n{IMPORTS}\n"
        f"MODEL = {source(calls(said['model'], FUNCTIONS, 'model'))}\n\n"
        f"TRAIN_MODULE = {source(calls(said['train'], FUNCTIONS, 'train'))}\n\n{sizes}"
    }


EXPORT_FORMATS.add(
    ExportFormat(
        "olmo-core",
        "OLMo-core",
        "classes of OLMo-core 2",
        (*MODEL, *TRAIN, *SIZES, BALANCING, DENSE_LAYERS),
        (
            *OBJECTIVE,
            SHARES_OF_MICRO_BATCH,
            Limit(
                ("model.router.scores",),
                lambda job: job.model.num_experts > 0 and job.model.router.scores == "sigmoid",
                "1e-7 is added to each score there",
            ),
            Limit(
                ("optimizer.schedule",),
                lambda job: job.decay != "constant",
                EARLY_DECAY,
            ),
            Limit(
                ("model.init_std",),
                lambda job: True,
                "weights start truncated at 3 deviations there, and none that write to the residual stream start smaller",
            ),
            FULLY_SHARDED,
        ),
        (
            router_kinds("topk", "bias_balanced"),
            differs("model.router.gate_scale", 1.0, "gates have no factor there"),
            differs("model.tied_embeddings", False, "the output layer has weights of its own there"),
            differs("model.qkv_bias", False, "a bias there is one of the output projection too"),
            differs("model.shared_expert_width", 0, "it is averaged with the chosen experts there"),
            WHOLE_THETA,
        ),
        (*IGNORED, "model.max_positions"),
        _files,
        "import MODEL, TRAIN_MODULE and the sizes in a training script of OLMo-core, such as src/examples/llm/train.py",
    )
)
