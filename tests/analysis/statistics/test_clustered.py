"""Tests of clustered answers: by known cases, and by simulated models and prompts whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.clustered import clustered_mean, cochran, mcnemar


def answers(models: int, prompts: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Right or not of two ways, the second better by `gain`: models and prompts each prefer one of them by chance.

    Returns (S, N, 2).
    """
    skill = 0.5 + 0.1 * rng.standard_normal((models, 1)) + 0.2 * rng.standard_normal((1, prompts))
    liking = 0.05 * rng.standard_normal((models, 1)) + 0.1 * rng.standard_normal((1, prompts))
    chance = np.stack([skill, skill + liking + gain], axis=-1).clip(0, 1)
    return (rng.random(chance.shape) < chance).astype(float)


def test_one_model_is_a_t_test_over_prompts_and_mcnemars_test() -> None:
    rng = np.random.default_rng(0)
    difference = rng.integers(-1, 2, size=(1, 40)).astype(float)
    found, known = clustered_mean(difference), stats.ttest_1samp(difference[0], 0)
    assert found.pvalue() == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    gained, lost = (difference == 1).sum(), (difference == -1).sum()
    assert mcnemar(difference) == pytest.approx(stats.chi2.sf((gained - lost) ** 2 / (gained + lost), 1))


def test_copies_of_a_model_say_no_more_than_one_of_these_models() -> None:
    difference = np.random.default_rng(1).integers(-1, 2, size=(1, 60)).astype(float)
    assert mcnemar(np.repeat(difference, 5, axis=0)) == pytest.approx(mcnemar(difference))
    right = (np.random.default_rng(2).random((1, 50, 3)) < (0.4, 0.5, 0.6)).astype(float)
    assert cochran(np.repeat(right, 4, axis=0)) == cochran(right)


def test_two_ways_are_cochrans_sign_test() -> None:
    right = np.zeros((1, 30, 2))
    right[0, :9, 0], right[0, 9:12, 1] = 1, 1
    assert cochran(right) == pytest.approx(stats.binomtest(9, 12).pvalue, abs=0.02)


def test_ways_that_never_differ_are_not_told_apart() -> None:
    same = np.ones((3, 10, 2))
    assert mcnemar(same[..., 1] - same[..., 0]) == 1.0 and cochran(same) == 1.0
    found = clustered_mean(same[..., 1] - same[..., 0])
    assert found.estimate == found.low == found.high == 0 and found.pvalue() == 1.0 and found.p_equivalence(0.01) == 0.0


def test_error_rates_hold_where_models_and_prompts_are_clusters() -> None:
    rng, repeats = np.random.default_rng(3), 600
    rejected, naive, covered, seen = 0, 0, 0, 0
    for _ in range(repeats):
        difference = np.diff(answers(6, 80, 0.0, rng))[..., 0]
        found = clustered_mean(difference)
        rejected += found.pvalue() < 0.05
        naive += stats.ttest_1samp(difference.ravel(), 0).pvalue < 0.05
        covered += found.low <= 0 <= found.high
        seen += clustered_mean(np.diff(answers(6, 80, 0.15, rng))[..., 0]).pvalue() < 0.05
    assert rejected / repeats < 0.07 and covered == repeats - rejected
    assert naive / repeats > 0.12  # answers taken for independent
    assert seen / repeats > 0.8


def test_cochrans_level_holds_where_prompts_are_clusters() -> None:
    rng, rejected = np.random.default_rng(4), 0
    for repeat in range(200):
        # Of each prompt and way, the same in all models.
        chance = (0.5 + 0.3 * rng.standard_normal((1, 40, 3))).clip(0, 1)
        right = (rng.random((5, 40, 3)) < chance).astype(float)
        rejected += cochran(right, permutations=199, seed=repeat) < 0.05
    assert rejected <= 20  # of 200 at 5 %: more by chance in 1 of 700
