import pytest
import torch

from core.config.loading import build
from core.config.objective import ObjectiveConfig
from core.diffusion.masking import mask_tokens, mask_validation, sample_timesteps
from core.diffusion.objective import objective_of


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["uniform", "stratified", "antithetic"])
def test_timesteps_are_uniform_on_the_half_open_interval(kind: str) -> None:
    t = torch.cat([sample_timesteps(32, kind, rng(i)) for i in range(500)])
    assert (t > 0).all() and (t <= 1).all()
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)
    assert t.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_stratified_timesteps_meet_every_stratum_in_any_order() -> None:
    t = sample_timesteps(16, "stratified", rng())
    assert sorted(((t * 16).ceil() - 1).int().tolist()) == list(range(16))
    first = torch.stack([sample_timesteps(16, "stratified", rng(i))[0] for i in range(300)])
    assert first.std() > 0.25  # position in the batch says nothing about t


def test_masking_follows_equation_2() -> None:
    objective = ObjectiveConfig(epsilon=0.05)
    masking = mask_tokens(64, 4000, objective, rng())
    probability_B = 0.95 * masking.timestep_B + 0.05
    torch.testing.assert_close(masking.weight_B, 1 / probability_B)
    share_B = masking.masked_BL.float().mean(1)
    assert ((share_B - probability_B).abs() < 5 * (probability_B * (1 - probability_B) / 4000).sqrt() + 1e-6).all()


def test_validation_masks_have_exact_counts_stratified_over_one_to_l() -> None:
    masking = mask_validation(20, 20, rng())
    counts = masking.masked_BL.sum(1)
    assert sorted(counts.tolist()) == list(range(1, 21))
    torch.testing.assert_close(masking.weight_B, 20 / counts)
    many = torch.cat([mask_validation(7, 5, rng(i)).masked_BL.sum(1) for i in range(2000)])
    for n in range(1, 6):
        assert (many == n).double().mean().item() == pytest.approx(0.2, abs=0.015)


def test_every_position_is_masked_alike() -> None:
    share_L = torch.cat([mask_validation(8, 6, rng(i)).masked_BL for i in range(1500)]).double().mean(0)
    assert share_L.tolist() == pytest.approx([3.5 / 6] * 6, abs=0.02)


def test_antithetic_timesteps_come_in_pairs() -> None:
    t = sample_timesteps(8, "antithetic", rng())
    torch.testing.assert_close(t[:4] + t[4:], torch.ones(4))
    assert len(sample_timesteps(7, "antithetic", rng())) == 7


def test_exact_counts_follow_the_timestep() -> None:
    masking = mask_tokens(32, 50, ObjectiveConfig(exact_mask_count=True), rng())
    counts = masking.masked_BL.sum(1)
    assert sorted(counts.tolist())[0] >= 1 and len(set(counts.tolist())) > 20
    torch.testing.assert_close(masking.weight_B, 50 / counts)


@pytest.mark.parametrize("kind", ["stratified", "antithetic"])
def test_paired_timesteps_lower_the_variance_of_the_loss(kind: str) -> None:
    def losses(timesteps: str) -> torch.Tensor:
        objective = ObjectiveConfig(timesteps=timesteps)  # type: ignore[arg-type]
        made = []
        for seed in range(300):
            masking = mask_tokens(8, 64, objective, rng(seed))
            cost_B = 1 + 2 * masking.timestep_B  # the more is hidden, the harder
            made.append((masking.masked_BL.sum(1) * masking.weight_B * cost_B / 64).mean())
        return torch.stack(made)

    assert losses(kind).var() < 0.8 * losses("uniform").var()
    assert losses(kind).mean().item() == pytest.approx(2.0, rel=0.03)


def test_validation_masks_only_what_may_be_masked() -> None:
    maskable_BL = torch.rand(40, 12, generator=rng(1)) < 0.5
    maskable_BL[:, 0] = True
    masking = mask_validation(40, 12, rng(), maskable_BL)
    assert not (masking.masked_BL & ~maskable_BL).any()
    counts = masking.masked_BL.sum(1)
    assert (counts >= 1).all() and torch.equal(masking.length_B, maskable_BL.sum(1).float())
    torch.testing.assert_close(masking.timestep_B, counts / masking.length_B)


def test_an_autoregressive_model_predicts_every_token_at_weight_one() -> None:
    objective = objective_of(build({"model.causal": True, "objective.kind": "autoregressive"}))
    for masking in (objective.mask(3, 5, rng()), objective.mask_validation(3, 5, rng())):
        assert (
            masking.masked_BL.all() and masking.weight_B.tolist() == [1, 1, 1] and masking.length_B.tolist() == [5] * 3
        )
