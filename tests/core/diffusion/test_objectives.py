"""Known answers: ln V, and the any-order NLL by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from core.config.objective import ObjectiveConfig
from core.diffusion.losses import context_weights, nelbo_per_token, token_cross_entropy, total_loss
from core.diffusion.masking import mask_tokens


def bound(cross_entropy_M: torch.Tensor, weight_B: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
    length_B = torch.full((len(masked_BL),), float(masked_BL.shape[1]))
    sequence_M = masked_BL.nonzero()[:, 0]
    return nelbo_per_token(cross_entropy_M, sequence_M, weight_B[sequence_M], length_B)


def test_uniform_logits_cost_ln_v() -> None:
    cross_entropy_M = token_cross_entropy(torch.zeros(5, 259, dtype=torch.bfloat16), torch.arange(5))
    torch.testing.assert_close(cross_entropy_M, torch.full((5,), math.log(259)))


def test_the_loss_is_equation_2_written_as_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    masked_BL = torch.rand(3, 8, generator=generator) < 0.5
    masked_BL[1] = False
    cross_entropy_BL = torch.rand(3, 8, generator=generator)
    weight_B = torch.tensor([1.0, 20.0, 3.0])
    expected = [
        sum(weight_B[b].item() * cross_entropy_BL[b, i].item() for i in range(8) if masked_BL[b, i]) / 8
        for b in range(3)
    ]
    loss_B = bound(cross_entropy_BL[masked_BL], weight_B, masked_BL)
    assert loss_B.tolist() == pytest.approx(expected, rel=1e-6)
    assert loss_B[1] == 0


def test_a_uniform_model_has_nelbo_ln_v_in_expectation() -> None:
    estimates = []
    for seed in range(400):
        masking = mask_tokens(16, 64, ObjectiveConfig(), torch.Generator().manual_seed(seed))
        ones_M = torch.full((int(masking.masked_BL.sum()),), math.log(50))
        estimates.append(bound(ones_M, masking.weight_B, masking.masked_BL).mean().item())
    error = np.std(estimates) / len(estimates) ** 0.5
    assert np.mean(estimates) == pytest.approx(math.log(50), abs=4 * error)


def test_fine_tuning_masks_only_responses_and_divides_by_their_length() -> None:
    """Eq. 5: -E (1 / p) sum over masked response tokens of log p, over the response's length."""
    maskable_BL = torch.zeros(2, 10, dtype=torch.bool)
    maskable_BL[0, 4:] = True
    maskable_BL[1, 7:9] = True
    objective = ObjectiveConfig(kind="sft")
    estimates = []
    for seed in range(2000):
        masking = mask_tokens(2, 10, objective, torch.Generator().manual_seed(seed), maskable_BL)
        assert not (masking.masked_BL & ~maskable_BL).any()
        sequence_M = masking.masked_BL.nonzero()[:, 0]
        cross_entropy_M = torch.tensor([1.0, 3.0])[sequence_M]  # each token of the second sequence costs 3 nats
        estimates.append(nelbo_per_token(cross_entropy_M, sequence_M, masking.weight_B[sequence_M], masking.length_B))
    assert masking.length_B.tolist() == [6, 2]
    assert torch.stack(estimates).mean(0).tolist() == pytest.approx([1.0, 3.0], rel=0.05)


def exact_nelbo(sequence: tuple[int, ...], conditional) -> float:
    """The bound for one sequence, every mask of every count enumerated, through the project's own loss."""
    length, terms = len(sequence), []
    for count in range(1, length + 1):
        for hidden in itertools.combinations(range(length), count):
            masked_BL = torch.zeros(1, length, dtype=torch.bool)
            masked_BL[0, list(hidden)] = True
            cross_entropy_M = torch.tensor([-math.log(conditional(sequence, hidden, i)) for i in hidden])
            loss_B = bound(cross_entropy_M.double(), torch.tensor([length / count]).double(), masked_BL)
            terms.append(loss_B.item() / math.comb(length, count) / length)
    return sum(terms)


def test_the_bound_is_the_any_order_autoregressive_nll() -> None:
    """An inconsistent denoiser (no posterior of any distribution): enumerate all L! orders of L = 6."""

    def conditional(x: tuple[int, ...], hidden: tuple[int, ...], position: int) -> float:
        return 0.1 + 0.8 * math.sin(1 + 7 * position + sum(3**i for i in hidden) + x[position]) ** 2

    x = (0, 1, 1, 0, 1, 0)
    nll = []
    for order in itertools.permutations(range(6)):
        nll.append(sum(-math.log(conditional(x, tuple(sorted(order[i:])), order[i])) for i in range(6)) / 6)
    assert exact_nelbo(x, conditional) == pytest.approx(np.mean(nll), rel=1e-6)


def test_the_total_is_equation_4() -> None:
    parts = (torch.tensor(2.0), torch.tensor(1.5), torch.tensor(4.0))
    assert total_loss(*parts, weights=(0.01, 0.001)).item() == pytest.approx(2.0 + 0.015 + 0.004)


def test_context_weights_are_dreams_formula_written_as_a_loop() -> None:
    masked_BL = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    masked_BL[1], masked_BL[2] = True, torch.arange(9) == 4
    for p in (0.1, 0.7):
        weight_BL = context_weights(masked_BL, p)
        for b, n in itertools.product(range(3), range(9)):
            visible = [i for i in range(9) if not masked_BL[b, i]]
            expected = sum(p * (1 - p) ** (abs(n - i) - 1) for i in visible) / 2 if masked_BL[b, n] else 0.0
            assert weight_BL[b, n].item() == pytest.approx(expected, abs=1e-6)
    assert not weight_BL[1].any()  # nothing is visible
    assert weight_BL[2, 4].item() == pytest.approx(1 - 0.3**4)  # all of four on either side: both sides' mass, halved
