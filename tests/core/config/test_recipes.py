"""Every published system's recipe trains on a small base, first stages included; and what an autoregressive start buys."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from core.config.loading import build
from core.config.presets import PRESETS, Recipe, recipes
from core.config.run import RunConfig, to_dict
from core.data.module import MaskedTextModule
from core.training.checks import check
from core.training.module import MaskedDiffusion
from core.training.run import train
from core.training.weights import load_weights
from tests.core.training.test_run import QUICK

SHARED = {"data.corpus": "task:copy", "data.sequence_length": 24, "data.validation_sequences": 16}
BASE = build(QUICK, SHARED)
NAMES = ("LLaDA-MoE", "LLaDA", "LLaDA 1.5", "Dream", "Qwen2.5", "LLaDA2.0", "EC-DLM", "EC-DLM, softmax first")


def staged(recipe: Recipe, folder: Path) -> RunConfig:
    """The recipe's config, its first stage trained."""
    if recipe.first is None:
        return build(QUICK, SHARED, recipe.settings)
    first = build(QUICK, SHARED, recipe.first)
    assert train(first, folder / "first").status == "complete"
    weights = str(folder / "first" / "model.safetensors")
    return build(QUICK, SHARED, recipe.settings, {"trainer.initial_weights": weights})


@pytest.mark.parametrize("name", NAMES)
def test_every_system_trains(name: str, tmp_path: Path) -> None:
    record = train(staged(recipes(BASE)[name], tmp_path), tmp_path / "run")
    assert record.status == "complete", record.reason
    assert record.metrics["val/nelbo"] < 5.6  # less than ln 259 = 5.557 but for the last of noise
    assert ("val/preference_accuracy" in record.metrics) == (name == "LLaDA 1.5")


def test_the_list_is_whole_and_the_presets_are_of_it() -> None:
    assert tuple(recipes(BASE)) == NAMES
    proxy = recipes(PRESETS["proxy"])
    for name, system in (("llada_proxy", "LLaDA"), ("dream_proxy", "Dream"), ("qwen2_5_proxy", "Qwen2.5"),
                         ("llada2_proxy", "LLaDA2.0"), ("ec_dlm_proxy", "EC-DLM")):  # fmt: skip
        assert PRESETS[name] == build(to_dict(PRESETS["proxy"]), proxy[system].settings)
        check(build(to_dict(PRESETS[name]), {"data.corpus": "markov", "data.validation_sequences": 8}))


@pytest.mark.parametrize("name", ["EC-DLM", "EC-DLM, softmax first"])
@pytest.mark.parametrize(
    ("base", "changes"),
    [("tiny", {}), ("proxy", {}), ("llada_moe_7b_a1b", {}), ("tiny", {"model.granularity": 2}),
     ("tiny", {"model.shared_expert_width": 48})],
)  # fmt: skip
def test_two_shared_experts_cost_no_active_parameters(base: str, changes: dict, name: str) -> None:
    config = build(to_dict(PRESETS[base]), changes)
    control, model = config.model, build(to_dict(config), recipes(config)[name].settings).model
    own = control.shared_expert_width
    assert model.shared_expert_width - own == 2 * control.granularity * model.width_of_expert
    routed = model.experts_per_token * model.width_of_expert
    assert routed + model.shared_expert_width == control.top_k * control.expert_width + own
    assert model.experts * model.width_of_expert == control.num_experts * control.expert_width


def test_an_autoregressive_start_with_shifted_logits_is_worth_something(tmp_path: Path) -> None:
    """Dream's first steps, on a Markov chain: where few tokens are masked, the weights of a causal network predict them
    better from the state before than fresh ones do, and better than the same weights whose logits aren't shifted."""
    shape = {"data.corpus": "markov", "model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0,
             "model.dense_width": 64, "optimizer.learning_rate": 4e-3}  # fmt: skip
    causal = {"model.causal": True, "objective.kind": "autoregressive", "trainer.steps": 150, "trainer.batch_size": 16}
    train(build(QUICK, shape, causal, {"trainer.validate_every": 0}), tmp_path / "causal")

    def loss(start: bool, shifted: bool) -> float:
        """Cross-entropy of single masked tokens before any step."""
        module = MaskedDiffusion(build(QUICK, shape, {"model.shifted": shifted}))
        if start:
            load_weights(module.denoiser, str(tmp_path / "causal" / "model.safetensors"))
        tokens_BL = torch.cat([batch.tokens_BL for batch in MaskedTextModule(module.config).val_dataloader()])
        masked_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
        masked_BL[:, 16] = True
        with torch.no_grad():
            chosen = () if shifted else (masked_BL,)
            logits, _ = module.denoiser(tokens_BL.masked_fill(masked_BL, 256), *chosen)
            logits_MV = logits[:, 16] if shifted else logits
        return float(cross_entropy(logits_MV, tokens_BL[:, 16]))

    started, fresh, unshifted = loss(True, True), loss(False, True), loss(True, False)
    assert started < fresh - 0.5 and started < unshifted - 0.5
