"""Published systems as training recipes of this code: what each changes of one base model, at the base's active size.

A recipe is what tells a system's learning from another's, not the details of its blocks: depth, width, heads and corpus are
the base's, so that a difference between two is one of how they learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config.model import ModelConfig
from core.config.run import RunConfig


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
    """The systems by name, the base's own first. base: a sparse model of the LLaDA-MoE shape.

    Dense ones have the feed-forward width of the base's chosen experts, and blocks are an eighth of a sequence. preferences:
    the corpus of LLaDA 1.5's second stage.
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

    So parameters and active parameters stay as they are, but for the shared ones' and the router's. Where experts are
    finer already, a whole one is more than two of them; and a model that chooses a single expert keeps choosing it.
    """
    return {
        "model.granularity": 2 * model.granularity,
        "model.top_k": max(1, model.top_k - 1),
        "model.shared_expert_width": model.shared_expert_width + model.expert_width,
    }
