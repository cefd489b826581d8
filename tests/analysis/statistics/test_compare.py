import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.compare import equivalence, holm, paired_effect, verdict
from core.errors import UserError


def test_paired_effect_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3), interval 2 ± 4.3027 / sqrt(3)."""
    effect = paired_effect([10, 20, 30], [11, 22, 33])
    assert effect.estimate == pytest.approx(2)
    assert effect.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert effect.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert effect.pvalue == pytest.approx(2 * stats.t.sf(2 * 3**0.5, 2))
    assert effect.effect_size == pytest.approx(2)
    assert effect.correlation == pytest.approx(1)
    assert effect.n == 3


@pytest.mark.parametrize(
    ("control", "arm", "reason"),
    [
        ([1.0], [2.0], "at least 2"),
        ([1.0, 2.0], [1.0], "equal length"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], "identical"),
        ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], "identical"),
    ],
)
def test_what_cannot_be_compared_is_refused(control, arm, reason) -> None:
    with pytest.raises(UserError, match=reason):
        paired_effect(control, arm)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_a_margin_is_positive() -> None:
    with pytest.raises(UserError, match="margin"):
        equivalence(np.zeros(5), [0.1, -0.2, 0.05, 0.0, 0.15], margin=0)


@pytest.mark.parametrize(
    ("estimate", "p_holm", "p_same", "goal", "words"),
    [
        (-1, 0.01, None, "min", "better"),
        (-1, 0.01, 0.01, "max", "worse"),
        (1, 0.01, None, "min", "worse"),
        (1, 0.2, 0.01, "min", "equivalent within the margin"),
        (1, 0.2, 0.3, "min", "no detectable difference at this resolution"),
        (1, 0.2, None, "min", "no detectable difference at this resolution"),
    ],
)
def test_words(estimate, p_holm, p_same, goal, words) -> None:
    assert verdict(estimate, p_holm, p_same, goal=goal) == words


def blocks(rng: np.random.Generator, seeds: int, arms: int, scale: float = 0.1) -> np.ndarray:
    return rng.normal(0, 1, (seeds, 1)) + rng.normal(0, scale, (seeds, arms))


def test_intervals_cover_and_nulls_are_rejected_at_their_rate() -> None:
    rng = np.random.default_rng(0)
    covered = rejected = 0
    for _ in range(1500):
        effect = paired_effect(*blocks(rng, 5, 2).T)
        covered += effect.low <= 0 <= effect.high
        rejected += effect.pvalue < 0.05
    assert 0.935 < covered / 1500 < 0.965
    assert covered + rejected == 1500


def against_control(scores_SA: np.ndarray) -> np.ndarray:
    """Holm-adjusted p-values of every arm against the first."""
    return holm([paired_effect(scores_SA[:, 0], arm_S).pvalue for arm_S in scores_SA.T[1:]])


def test_holm_keeps_the_family_wise_error_even_with_one_unstable_arm() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(800):
        scores = blocks(rng, 5, 5)
        scores[:, 3] += rng.normal(0, 3, 5)
        wrong += (against_control(scores) < 0.05).any()
    assert wrong / 800 < 0.05 + 2.5 * (0.05 * 0.95 / 800) ** 0.5


def test_a_planted_effect_is_found_and_a_margin_is_not_claimed_too_often() -> None:
    rng, found, claimed = np.random.default_rng(2), 0, 0
    for _ in range(400):
        scores = blocks(rng, 6, 3)
        scores[:, 1] += 0.5
        found += against_control(scores)[0] < 0.05
        claimed += equivalence(*blocks(rng, 6, 2).T + np.array([[0], [0.2]]), margin=0.2) < 0.05
    assert found / 400 > 0.95
    assert 0.02 < claimed / 400 < 0.08
