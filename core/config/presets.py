"""Configs by name: the published models, proxies of the LLaDA-MoE shape, and what an ablation starts from.

A recipe holds what tells a published system's learning from another's, as changes of one base model at its active size.
Depth, width, heads and corpus are the base's, so that a difference between two recipes is one of how they learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config.data import DataConfig
from core.config.loading import build, load, nested
from core.config.model import ModelConfig
from core.config.objective import ObjectiveConfig
from core.config.run import RunConfig, to_dict
from core.config.training import OptimizerConfig, TrainerConfig
from core.errors import UserError
from core.registry import nearest


def _proxy(
    hidden: int, layers: int, head_dim: int, experts: int, width: int, *, learning_rate: float, steps: int
) -> RunConfig:
    """A small model of the LLaDA-MoE shape: every layer sparse, top-2, no shared expert, QK-norm per head, bytes."""
    return RunConfig(
        model=ModelConfig(
            hidden_size=hidden,
            num_layers=layers,
            num_heads=hidden // head_dim,
            head_dim=head_dim,
            num_experts=experts,
            top_k=2,
            expert_width=width,
        ),
        data=DataConfig(sequence_length=256, validation_sequences=512),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=min(200, steps // 10)),
        trainer=TrainerConfig(steps=steps, batch_size=64, validate_every=steps // 8, log_every=50),
    )


def _published(model: ModelConfig, *, learning_rate: float, length: int, autoregressive: bool = False) -> RunConfig:
    return RunConfig(
        model=model,
        objective=ObjectiveConfig(kind="autoregressive" if autoregressive else "masked_diffusion"),
        data=DataConfig(sequence_length=length),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=2000),
        trainer=TrainerConfig(steps=100_000, batch_size=256, validate_every=1000, log_every=50, precision="bf16"),
    )


def _changed(part: Any, settings: Mapping[str, Any]) -> Any:
    """A config, or a part of one, with nested settings over it: what this file says needs none of the checks of `build`."""
    inner = {name: _changed(getattr(part, name), each) for name, each in settings.items() if isinstance(each, Mapping)}
    return replace(part, **{**settings, **inner})


DENSE: dict[str, Any] = {"num_experts": 0, "top_k": 0, "expert_width": 0}

PRESETS: dict[str, RunConfig] = {
    # The LLaDA-MoE shape at a size that one CPU core trains in about ten seconds: all layers MoE, top-2 of 8.
    "tiny": RunConfig(
        model=ModelConfig(hidden_size=96, num_layers=2, num_heads=3, head_dim=32, expert_width=48),
        data=DataConfig(sequence_length=64, validation_sequences=256),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        trainer=TrainerConfig(steps=400, batch_size=16, validate_every=50),
    ),
    "proxy": _proxy(256, 8, 64, 16, 256, learning_rate=1e-3, steps=4000),
    # A ladder of total parameters, each within 10 % of its name. Chosen experts are 0.9 to 2.3 hidden sizes wide
    # together (LLaDA-MoE: 4), because few experts make a small model.
    "proxy_1m": _proxy(96, 4, 32, 8, 96, learning_rate=4e-3, steps=1000),
    "proxy_3m": _proxy(128, 6, 32, 16, 64, learning_rate=3e-3, steps=2000),
    "proxy_10m": _proxy(256, 6, 64, 16, 112, learning_rate=2e-3, steps=4000),
    "proxy_30m": _proxy(384, 8, 64, 16, 168, learning_rate=1.5e-3, steps=8000),
    "proxy_100m": _proxy(512, 12, 64, 16, 296, learning_rate=1e-3, steps=16_000),
    "proxy_300m": _proxy(768, 14, 64, 16, 512, learning_rate=7e-4, steps=32_000),
    "proxy_1b": _proxy(1024, 16, 128, 16, 1184, learning_rate=4e-4, steps=64_000),
    # inclusionAI/LLaDA-MoE-7B-A1B-Base (arXiv 2509.24389, Table 1); RoPE base after annealing
    "llada_moe_7b_a1b": _published(
        ModelConfig(
            vocab_size=157_184,
            mask_id=156_895,
            eos_id=156_892,
            pad_id=156_892,
            hidden_size=2048,
            num_layers=16,
            num_heads=16,
            head_dim=128,
            num_experts=64,
            top_k=8,
            expert_width=1024,
            rope_theta=5e4,
        ),
        learning_rate=4e-4,
        length=4096,
    ),
    # GSAI-ML/LLaDA-8B-Base (arXiv 2502.09992, Table 5)
    "llada_8b": _published(
        ModelConfig(
            vocab_size=126_464,
            mask_id=126_336,
            eos_id=126_081,
            pad_id=126_081,
            hidden_size=4096,
            num_layers=32,
            num_heads=32,
            head_dim=128,
            qk_norm="none",
            **DENSE,
            dense_width=12_288,
            rope_theta=5e5,
            max_positions=4096,
        ),
        learning_rate=4e-4,
        length=4096,
    ),
    # Qwen/Qwen2.5-3B (arXiv 2412.15115, Table 1): the autoregressive model that the paper compares with
    "qwen2_5_3b": _published(
        ModelConfig(
            vocab_size=151_936,
            mask_id=None,
            eos_id=151_643,
            pad_id=None,
            hidden_size=2048,
            num_layers=36,
            num_heads=16,
            num_kv_heads=2,
            head_dim=128,
            causal=True,
            qk_norm="none",
            qkv_bias=True,
            tied_embeddings=True,
            **DENSE,
            dense_width=11_008,
            rope_theta=1e6,
            max_positions=32_768,
            norm_eps=1e-6,
        ),
        learning_rate=3e-4,
        length=4096,
        autoregressive=True,
    ),
    # allenai/OLMoE-1B-7B-0924 (arXiv 2409.02060, Table 10)
    "olmoe_1b_7b": _published(
        ModelConfig(
            vocab_size=50_304,
            mask_id=None,
            eos_id=50_279,
            pad_id=1,
            hidden_size=2048,
            num_layers=16,
            num_heads=16,
            head_dim=128,
            causal=True,
            qk_norm="projection",
            num_experts=64,
            top_k=8,
            expert_width=1024,
            max_positions=4096,
        ),
        learning_rate=4e-4,
        length=4096,
        autoregressive=True,
    ),
}


@dataclass(frozen=True)
class Recipe:
    """settings: over the base's. first: those of a first stage, whose weights the recipe starts from; None: from scratch.

    first_share: of the training FLOPs, what the first stage gets. source: the paper.
    """

    settings: Mapping[str, Any]
    source: str
    first: Mapping[str, Any] | None = None
    first_share: float = 0.5


def recipes(base: RunConfig, *, preferences: str = "preferences:task:copy") -> dict[str, Recipe]:
    """The systems by name, the base's own first.

    base: a sparse model of the LLaDA-MoE shape. preferences: the corpus of LLaDA 1.5's second stage. Dense models have the
    feed-forward width of the base's chosen experts; blocks are an eighth of a sequence.
    """
    model = base.model
    dense = {
        "model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0,
        "model.dense_width": model.top_k * model.expert_width,
    }  # fmt: skip
    ec_dlm = _two_shared(model) | {"objective.load_balancing_weight": 0.0, "objective.z_loss_weight": 0.001}
    causal = dense | {"model.causal": True, "objective.kind": "autoregressive"}
    return {
        "LLaDA-MoE": Recipe({}, "arXiv 2509.24389"),
        "LLaDA": Recipe(dense, "arXiv 2502.09992"),
        "LLaDA 1.5": Recipe(
            dense
            | {"objective.kind": "vrpo", "objective.draws": 4, "data.corpus": preferences}
            | {"trainer.batch_size": max(2, base.trainer.batch_size // 8), "optimizer.learning_rate": 1e-4},
            "arXiv 2505.19223",
            first=dense,
            first_share=0.8,
        ),
        "Dream": Recipe(
            dense | {"model.shifted": True, "objective.weighting": "cart"}, "arXiv 2508.15487", first=causal
        ),
        "Qwen2.5": Recipe(causal, "arXiv 2412.15115"),
        "LLaDA2.0": Recipe(
            {"model.block_length": max(1, base.data.sequence_length // 8), "objective.block_schedule": "wsd"},
            "arXiv 2512.15745",
        ),
        "EC-DLM": Recipe(ec_dlm | {"model.router.kind": "ec_dlm"}, "arXiv 2604.01622"),
        # The option of its code that takes the softmax first: capacity is fixed then, and gates aren't scaled.
        "EC-DLM, softmax first": Recipe(ec_dlm | {"model.router.kind": "expert_choice"}, "arXiv 2604.01622"),
    }


def _two_shared(model: ModelConfig) -> dict[str, Any]:
    """Experts of half the width, two of which every token meets, in the place of one whole expert that it chooses.

    Parameters and active parameters stay, but for the shared ones' and the router's. A model that chooses a single expert
    keeps choosing it.
    """
    return {
        "model.granularity": 2 * model.granularity,
        "model.top_k": max(1, model.top_k - 1),
        "model.shared_expert_width": model.shared_expert_width + model.expert_width,
    }


# Published systems as recipes on the proxy. Dream goes on from the weights of qwen2_5_proxy, which
# trainer.initial_weights then names; so does LLaDA 1.5 from llada_proxy's, with objective.kind=vrpo.
for _name, _system in (
    ("llada_proxy", "LLaDA"),
    ("dream_proxy", "Dream"),
    ("qwen2_5_proxy", "Qwen2.5"),
    ("llada2_proxy", "LLaDA2.0"),
    ("ec_dlm_proxy", "EC-DLM"),
):
    PRESETS[_name] = _changed(PRESETS["proxy"], nested(recipes(PRESETS["proxy"])[_system].settings))


def resolve(name: str, settings: Mapping[str, Any]) -> RunConfig:
    """The config of a file or preset, with settings over it. Raises UserError when it is neither, or doesn't hold."""
    if Path(name).is_file():
        return load(Path(name), settings)
    if name in PRESETS:
        return build(to_dict(PRESETS[name]), settings)
    raise UserError(f"'{name}' is neither a config file nor a preset: {nearest(name, PRESETS)}")


def preset(name: str) -> RunConfig:
    """The config of that name. Raises UserError that names the nearest known ones."""
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': {nearest(name, PRESETS)}")
    return PRESETS[name]
