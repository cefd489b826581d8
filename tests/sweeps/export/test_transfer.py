"""Transfer of an arm's settings to another model, against values worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.config.loading import build
from core.config.presets import preset
from core.errors import UserError
from core.model.flops import flops_per_token, training_flops
from sweeps.export.transfer import RULES, Scale, carry, decided, published_optimum, rule_of, with_tokens

PROXY, TARGET = preset("tiny"), preset("llada_moe_7b_a1b")
COMPUTE, WIDTH, NONE = RULES["compute"], RULES["width"], RULES["none"]


def told(carried):
    return {entry.key: (entry.proxy, entry.target) for entry in carried}


def test_what_means_the_same_at_any_scale_carries_over_as_it_is() -> None:
    settings = {"objective.load_balancing_weight": 0.1, "model.router.kind": "film", "model.granularity": 2}
    proxy = build({"model": PROXY.model.__dict__ | {"router": {}}}, settings)
    config, carried = carry(settings, proxy, TARGET, COMPUTE)
    assert config.objective.load_balancing_weight == 0.1 and config.model.router.kind == "film"
    assert config.model.granularity == 2 and {entry.how for entry in carried} == {"as it is"}
    unchanged = replace(
        config,
        model=replace(config.model, router=TARGET.model.router, granularity=1),
        objective=TARGET.objective,
    )
    assert unchanged == TARGET


def test_rates_and_batches_move_by_the_published_exponents() -> None:
    settings = {"optimizer.learning_rate": 4e-3, "trainer.batch_size": 16}
    config, carried = carry(settings, PROXY, TARGET, COMPUTE, devices=64)
    ratio = training_flops(TARGET) / training_flops(PROXY)
    assert config.optimizer.learning_rate == pytest.approx(4e-3 * ratio**-0.2447, rel=5e-3)
    tokens = 16 * 64 * ratio**0.3481
    assert config.trainer.batch_size == round(tokens / 4096 / 64) * 64
    # As many tokens as before, though in other steps.
    assert Scale.of(config).tokens == pytest.approx(Scale.of(TARGET).tokens, rel=1e-3)
    assert told(carried)["trainer.batch_size"] == (16, config.trainer.batch_size)


def test_other_rules() -> None:
    by_width, _ = carry({"optimizer.learning_rate": 4e-3}, PROXY, TARGET, WIDTH)
    assert by_width.optimizer.learning_rate == pytest.approx(4e-3 * 96 / 2048, rel=5e-3)
    as_it_is, _ = carry({"optimizer.learning_rate": 4e-3}, PROXY, TARGET, NONE)
    assert as_it_is.optimizer.learning_rate == 4e-3
    with pytest.raises(UserError, match="unknown rule 'widht': did you mean width"):
        rule_of("widht")


def test_the_published_fits_at_the_papers_compute() -> None:
    rate, batch = published_optimum(1e21)
    assert rate == pytest.approx(64.8 * 10 ** (21 * -0.2447)) and batch == pytest.approx(0.374 * 10 ** (21 * 0.3481))


@pytest.mark.parametrize(
    ("settings", "experts", "chosen"),
    [
        ({"model.top_k": 2}, 64, 16),  # 2 of 8 are 16 of 64
        ({"model.num_experts": 8}, 32, 8),  # what was held stays the target's
        ({"model.num_experts": 8, "model.top_k": 2}, 64, 16),
    ],
)
def test_an_activation_ratio_is_carried(settings, experts, chosen) -> None:
    config, carried = carry(settings, PROXY, TARGET, COMPUTE)
    assert (config.model.num_experts, config.model.top_k) == (experts, chosen)
    assert set(told(carried)) == {"model.num_experts", "model.top_k"}


def test_arms_that_were_matched_are_matched_at_the_target_too() -> None:
    config, carried = carry({"model.top_k": 2}, PROXY, TARGET, COMPUTE, match=True)
    assert flops_per_token(config) == pytest.approx(flops_per_token(TARGET), rel=0.01)
    assert config.model.expert_width == 512 and told(carried)["model.expert_width"][1] == 512


def test_shares_of_a_run_and_of_an_expert() -> None:
    settings = {"optimizer.warmup_steps": 20, "model.shared_expert_width": 24}
    config, _ = carry(settings, PROXY, TARGET, COMPUTE)
    assert config.optimizer.warmup_steps == 5000  # 20 of 400 are 5000 of 100,000
    assert config.model.shared_expert_width == 512  # half an expert


def test_what_the_target_itself_says_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.hidden_size can't be carried .* the target's own 2048"):
        carry({"model.hidden_size": 96}, PROXY, TARGET, COMPUTE)
    with pytest.raises(UserError, match="the target is dense"):
        carry({"model.top_k": 2}, PROXY, preset("llada_8b"), COMPUTE)
    with pytest.raises(UserError, match="activation ratio of 3/8"):
        carry({"model.num_experts": 8}, replace(PROXY, model=replace(PROXY.model, top_k=3)), TARGET, COMPUTE)


def test_a_verdict_decides_where_the_winner_is_unlike_the_control() -> None:
    control, winner = {"model.top_k": 1, "objective.z_loss_weight": 0.1, "model.granularity": 2}, {"model.top_k": 2}
    winner |= {"objective.z_loss_weight": 0.1, "optimizer.beta2": 0.99}
    arms = [SimpleNamespace(name="a", settings=control), SimpleNamespace(name="b", settings=winner)]
    design = SimpleNamespace(arms=arms, control="a")
    assert decided(design, "a", PROXY) == {}
    assert decided(design, "b", PROXY) == {"model.top_k": 2, "optimizer.beta2": 0.99, "model.granularity": 1}
    config, carried = carry({}, PROXY, replace(TARGET, seed=3), COMPUTE, match=True, devices=64)
    assert config == replace(TARGET, seed=3) and carried == []


def test_tokens_become_steps() -> None:
    config = with_tokens(TARGET, 10e12)
    assert config.trainer.steps == -(-10_000_000_000_000 // (256 * 4096))
