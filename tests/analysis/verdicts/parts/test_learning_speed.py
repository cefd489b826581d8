"""Tokens to the same value: known crossings, symmetry, error rate."""

import numpy as np
import pytest

from analysis.verdicts.parts.learning_speed import learning_speed
from core.errors import UserError

TOKENS = np.array([100.0, 200.0, 400.0, 800.0])


def curves(seeds: int, speed: float = 1.0, noise: float = 0.0, key: int = 0) -> np.ndarray:
    """5 - log(speed x tokens), plus noise of a run: an arm of twice the speed is a factor of 2 in tokens ahead."""
    level = np.random.default_rng(key).normal(0, noise, (seeds, 1))
    return 5 - np.log(speed * TOKENS) + level


def test_an_arm_of_twice_the_speed_needs_half_the_tokens() -> None:
    found = learning_speed(TOKENS, curves(6), curves(6, speed=2.0, noise=1e-3))
    assert found.share == pytest.approx(0.5, rel=0.01)
    assert found.low < 0.5 < found.high < 0.51
    assert (found.n, found.reached, found.early) == (6, 6, 0)


def test_exchanging_the_arms_inverts_the_share() -> None:
    control, arm = curves(8, noise=0.3, key=1), curves(8, speed=1.3, noise=0.3, key=2)
    there, back = learning_speed(TOKENS, control, arm), learning_speed(TOKENS, arm, control)
    assert there.share == pytest.approx(1 / back.share)
    assert (there.low, there.pvalue) == (pytest.approx(1 / back.high), pytest.approx(back.pvalue))


def test_ties_at_the_end_favour_nobody() -> None:
    """A metric that saturates, such as the share of dead experts: both end at 0, each after its own time."""
    hits = []
    for key in range(300):
        rng = np.random.default_rng(key)
        control, arm = (np.maximum(0.0, 3 - rng.integers(1, 4, (6, 1)) * np.arange(4.0)) for _ in range(2))
        try:
            found, back = learning_speed(TOKENS, control, arm), learning_speed(TOKENS, arm, control)
        except UserError:  # the same share in all seeds
            continue
        assert found.share == pytest.approx(1 / back.share)
        hits.append(found.pvalue < 0.05)
    assert np.mean(hits) < 0.1


def test_an_arm_with_tokens_of_its_own_is_measured_in_them() -> None:
    """A first stage of 100 tokens: what it reaches after 100 of its own is reached after 200."""
    control, arm = curves(6), curves(6, speed=4.0, noise=1e-3)
    plain, staged = (learning_speed(TOKENS, control, arm, arm_tokens_T=TOKENS + first) for first in (0, 100))
    assert plain == learning_speed(TOKENS, control, arm) and plain.share == pytest.approx(200 / 800, rel=0.01)
    assert staged.share == pytest.approx(300 / 800, rel=0.01)
    back = learning_speed(TOKENS + 100, arm, control, arm_tokens_T=TOKENS)
    assert back.share == pytest.approx(1 / staged.share)
    with pytest.raises(UserError, match="don't fit"):
        learning_speed(TOKENS, control, arm, arm_tokens_T=TOKENS[:3])


def test_a_higher_metric_is_turned_around() -> None:
    control, arm = curves(5, noise=0.1), curves(5, speed=1.5, noise=0.1, key=3)
    assert learning_speed(TOKENS, -control, -arm, higher_is_better=True) == learning_speed(TOKENS, control, arm)


def test_a_crossing_before_the_first_validation_is_counted_and_taken_to_be_there() -> None:
    arm = np.vstack([curves(2, speed=20.0), curves(2, speed=2.0)])
    found = learning_speed(TOKENS, curves(4), arm)
    assert found.early == 2
    assert found.share == pytest.approx((1 / 8 * 1 / 2) ** 0.5)


def test_equal_arms_are_told_apart_at_the_nominal_rate() -> None:
    hits = [
        learning_speed(TOKENS, curves(6, noise=0.2, key=2 * r), curves(6, noise=0.2, key=2 * r + 1)).pvalue < 0.05
        for r in range(600)
    ]
    assert 0.02 < np.mean(hits) < 0.08


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="don't fit"):
        learning_speed(TOKENS, curves(3), curves(4))
    with pytest.raises(UserError, match="finite"):
        learning_speed(TOKENS, curves(3), curves(3) * np.nan)
    with pytest.raises(UserError, match="at least 2 validations"):
        learning_speed([5.0], np.ones((3, 1)), np.ones((3, 1)))
