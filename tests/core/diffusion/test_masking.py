import pytest
import torch

from core.config import ObjectiveConfig
from core.diffusion.masking import mask_tokens, mask_validation, sample_timesteps


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
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
