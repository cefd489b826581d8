import numpy as np
import pytest
import torch

from core.diffusion.anomalies import find_anomalies, longest_loop, repetition
from core.diffusion.sampling import Sampled


def sampled(response: list[int], steps: list[int], confidence: list[float]) -> Sampled:
    """One sequence with a prompt of two tokens."""
    return Sampled(
        torch.tensor([[1, 1, *response, 0]]),
        torch.tensor([2 + len(response)]),
        torch.tensor([[-1, -1, *steps, -1]]),
        torch.tensor([[torch.nan, torch.nan, *confidence, torch.nan]], dtype=torch.float64),
        torch.tensor([max(steps) + 1]),
    )


def test_repetition_is_the_share_of_four_grams_seen_before() -> None:
    assert repetition(np.arange(10)) == 0 and repetition(np.arange(3)) == 0
    assert repetition(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert repetition(np.zeros(103)) == pytest.approx(99 / 100)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (list(range(50)), 0),
        ([7] * 5 + list(range(40)), 0),  # too short to be one
        (list(range(100, 110)) + [1, 2, 3] * 9, 27),
        ([9] * 30 + [8], 30),
        (list(range(20)) * 2, 0),  # twice is not three times
        ((list(range(20)) * 3)[:59], 0),
        (list(range(20)) * 3, 60),
    ],
)
def test_a_loop_is_one_period_three_times_in_a_row(tokens: list[int], expected: int) -> None:
    assert longest_loop(np.array(tokens)) == expected


def test_a_response_that_loops_before_its_end_token_repeats() -> None:
    looped = find_anomalies(sampled([5] * 40, list(range(40)), [0.9] * 40), 0)
    assert looped.repeats and looped.loop == 40 and not looped.stuck and looped.guesses == 0
    ended = find_anomalies(sampled([5, 6, 7, 257] + [257] * 36, list(range(40)), [0.9] * 40), 0, eos_id=257)
    assert not ended.repeats and ended.loop == 0


def test_a_sequence_whose_calls_only_guess_is_stuck() -> None:
    steps = [call for call in range(20) for _ in range(2)]
    low = [0.2, 0.4] * 20
    assert find_anomalies(sampled(list(range(40)), steps, low), 0).stuck
    broken = [value for call in range(20) for value in (0.2, 0.6 if call == 10 else 0.4)]
    found = find_anomalies(sampled(list(range(40)), steps, broken), 0)
    assert found.guesses == 10 and not found.stuck
