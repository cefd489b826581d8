import math

import pytest
import torch

from core.diffusion.unmasking import choose_confident, choose_count, draw_tokens, score_positions, step_counts
from core.runtime.random_streams import torch_stream


def generators(count: int) -> list[torch.Generator]:
    return [torch_stream(0, "test", index) for index in range(count)]


def scores(batch: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    score_BW = torch.rand(batch, width, generator=noise, dtype=torch.float64)
    return score_BW, torch.rand(batch, width, generator=noise) < 0.6


def hierarchical(confidence: list[float], masked: list[bool], threshold: float, low: float | None) -> list[int]:
    """dInfer's rule as a loop over one sequence."""
    open_ = [i for i, is_masked in enumerate(masked) if is_masked]
    if not open_:
        return []
    best = max(open_, key=lambda i: confidence[i])
    chosen = {best} | {i for i in open_ if confidence[i] >= threshold}
    if low is not None and confidence[best] >= low:
        run: list[int] = []
        for i in range(len(masked) + 1):
            if i < len(masked) and masked[i]:
                run.append(i)
            elif run:
                winner = max(run, key=lambda i: confidence[i])
                chosen |= {winner} if confidence[winner] >= low else set()
                run = []
    return sorted(chosen)


def test_steps_fix_as_equal_counts_as_can_be_the_larger_first() -> None:
    assert step_counts(torch.tensor([7, 3, 0]), 3).tolist() == [[3, 2, 2], [1, 1, 1], [0, 0, 0]]


def test_a_count_takes_the_best_masked_positions_and_the_first_of_equals() -> None:
    score_BW = torch.tensor([[0.9, 0.5, 0.5, 0.8], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    masked_BW = torch.tensor([[False, True, True, True], [True, True, False, False]])
    assert choose_count(score_BW, masked_BW, torch.tensor([2, 1])).tolist() == [
        [False, True, False, True], [False, True, False, False],
    ]  # fmt: skip


@pytest.mark.parametrize(("threshold", "low"), [(0.95, None), (0.76, 0.62), (0.9, 0.2), (0.3, None)])
def test_thresholds_choose_what_the_loop_chooses(threshold: float, low: float | None) -> None:
    for seed in range(20):
        score_BW, masked_BW = scores(4, 12, seed)
        masked_BW[0] = seed % 2 == 0
        chosen_BW = choose_confident(score_BW, masked_BW, threshold, low)
        for chosen, score, masked in zip(chosen_BW.tolist(), score_BW.tolist(), masked_BW.tolist(), strict=True):
            assert [i for i, c in enumerate(chosen) if c] == hierarchical(score, masked, threshold, low)


def test_gumbel_noise_samples_the_tempered_softmax() -> None:
    logits_V = torch.tensor([1.0, 0.0, -1.0, -torch.inf])
    for temperature in (1.0, 0.5, 2.0):
        drawn = draw_tokens(logits_V.expand(40_000, 4), temperature, generators(1), [40_000])
        share_V = drawn.bincount(minlength=4) / len(drawn)
        torch.testing.assert_close(share_V, (logits_V / temperature).softmax(-1), atol=0.012, rtol=0)
    assert draw_tokens(logits_V.expand(3, 4), 0.0, [], []).tolist() == [0, 0, 0]


def test_noise_is_a_sequences_own() -> None:
    logits_MV = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    whole = draw_tokens(logits_MV, 1.0, generators(3), [3, 0, 4])
    assert torch.equal(whole[3:], draw_tokens(logits_MV[3:], 1.0, generators(3)[2:], [4]))


def test_scores_are_their_formulas() -> None:
    probs_MV = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.4, 0.35, 0.25, 0.0]], dtype=torch.float64)
    tokens_M = torch.tensor([0, 2])

    def score(rule):
        return score_positions(probs_MV.log(), tokens_M, rule, generators(1), [2]).tolist()

    assert score("low_confidence") == pytest.approx([0.7, 0.25])
    assert score("margin") == pytest.approx([0.5, 0.05])
    assert score("entropy") == pytest.approx([sum(p * math.log(p) for p in row if p) for row in probs_MV.tolist()])
    assert score("random") == score("random") != score("margin")
