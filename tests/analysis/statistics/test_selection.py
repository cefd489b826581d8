"""The best of many against brute force, and the winner's curse against simulation."""

import itertools

import numpy as np
import pytest

from analysis.statistics.selection import confirm, expected_best
from core.errors import UserError


@pytest.mark.parametrize("better", [max, min])
def test_expected_best_is_the_mean_over_all_subsets(better) -> None:
    scores = np.random.default_rng(0).normal(size=8)
    for n in range(1, 9):
        slow = np.mean([better(subset) for subset in itertools.combinations(scores, n)])
        assert expected_best(scores, n, higher_is_better=better is max) == pytest.approx(slow)


def test_expected_best_is_exact_for_many_trials_and_ties() -> None:
    assert expected_best([5.0] * 1000, 400) == pytest.approx(5)
    uniform = np.arange(1, 2001) / 2001  # the best of n uniform draws without replacement: n (N + 1) / (n + 1)
    assert expected_best(uniform, 99) == pytest.approx(99 / 100)


def test_expected_best_is_unbiased_where_drawing_with_replacement_is_not() -> None:
    rng = np.random.default_rng(1)
    samples = rng.uniform(size=(4000, 10))
    ours = np.mean([expected_best(row, 5) for row in samples])
    plugged_in = np.mean([(np.arange(1, 11) / 10) ** 5 @ np.r_[np.sort(row)[:-1] - np.sort(row)[1:], np.sort(row)[-1]]
                          for row in samples])  # fmt: skip
    assert ours == pytest.approx(5 / 6, abs=0.004)
    assert abs(plugged_in - 5 / 6) > 0.02


@pytest.mark.parametrize(
    ("scores", "n", "said"),
    [*(([1, 2, 3], n, "only 3 trials") for n in (0, 4, -1)), ([1, np.nan], 1, "leave failed trials out")],
)
def test_expected_best_refuses_what_was_not_tried_or_failed(scores: list[float], n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        expected_best(scores, n)


def test_confirm_estimates_by_fresh_seeds() -> None:
    found = confirm([1.0, 2.0, 3.0])
    assert (found.estimate, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))  # t(2), 97.5 %


def test_the_winner_of_equal_arms_is_flattered_and_its_confirmation_is_not() -> None:
    rng = np.random.default_rng(2)
    selected, found = [], []
    for _ in range(2000):
        means, fresh = rng.normal(size=(9, 3)).mean(1), rng.normal(size=(9, 8))
        selected.append(means.max())
        found.append(confirm(fresh[means.argmax()]))
    assert np.mean(selected) == pytest.approx(0.857, abs=0.02)  # E max of 9 normals / sqrt(3)
    assert np.mean([c.estimate for c in found]) == pytest.approx(0, abs=0.025)
    assert np.mean([c.low < 0 < c.high for c in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("fresh", "said"), [([1], "at least 2 fresh seeds"), ([1, np.nan], "fresh seeds without")])
def test_confirm_refuses(fresh: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        confirm(fresh)
