"""Peeking: published Bayes factors and bounds, error rates over all looks, power."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.compare import equivalence, paired_effect
from analysis.statistics.sequential import anytime, bayes_factor, chance_of_verdict, confidence_sequence, strongest
from core.errors import UserError


def rejects(differences_S, alpha: float = 0.05) -> bool:
    """True if the strongest evidence so far rejects "no difference"."""
    return strongest(differences_S)[0] >= 1 / alpha


def with_t(t: float, n: int) -> np.ndarray:
    """n differences whose t statistic is t."""
    x = np.linspace(-1, 1, n)
    return x / x.std(ddof=1) + t / math.sqrt(n)


@pytest.mark.parametrize(
    ("t", "n", "scale", "factor"),
    [
        (2.03, 80, 1.0, 1 / 1.56),  # Rouder et al. 2009, Sec. "JZS Bayes factor"
        (3.5, 20, math.sqrt(0.5), 17.185),  # pingouin's and BayesFactor's documentation
    ],
)
def test_published_bayes_factors(t: float, n: int, scale: float, factor: float) -> None:
    assert bayes_factor(with_t(t, n), scale=scale) == pytest.approx(factor, rel=0.01)


def test_looking_after_every_seed_keeps_the_error_rate() -> None:
    rng = np.random.default_rng(0)
    hits = np.mean([rejects(rng.normal(0, 1, 20)) for _ in range(400)])
    assert hits < 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 400)
    draws = rng.normal(0, 1, (400, 20))
    looks = [stats.ttest_1samp(draws[:, :n], 0, axis=1).pvalue < 0.05 for n in range(2, 21)]
    naive = np.any(looks, axis=0).mean()
    assert naive > 0.15  # what it is there to prevent


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([rejects(rng.normal(1.5, 1, 12)) for _ in range(100)]) > 0.8


def test_the_confidence_sequence_holds_at_every_look_at_once() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(150):
        x = rng.normal(0.7, 1, 12)
        missed += any(not low <= 0.7 <= high for low, high in (confidence_sequence(x[:n]) for n in (2, 3, 5, 8, 12)))
    assert missed / 150 < 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 150)


def test_the_interval_is_what_is_not_rejected() -> None:
    x = np.random.default_rng(4).normal(1, 1, 8)
    low, high = confidence_sequence(x)
    assert [bayes_factor(x - end) for end in (low, high)] == pytest.approx([20, 20], rel=1e-3)
    assert low < stats.t.interval(0.95, 7, x.mean(), stats.sem(x))[0]


def test_it_stays_rejected_and_bad_input_is_refused() -> None:
    x = [1.0, 1.1, 0.9, 1.05, 1.0]
    assert rejects(x) and rejects([*x, -9.0])
    assert not rejects([5.0]) and confidence_sequence([5.0]) == (-math.inf, math.inf)
    assert bayes_factor([0.0, 0.0, 0.0]) == 1.0 and bayes_factor([0.5, 0.5]) == math.inf
    assert bayes_factor(with_t(700.0, 200)) == math.inf
    for broken in ([1.0, math.nan], [[1.0]]):
        with pytest.raises(UserError, match="finite differences"):
            rejects(broken)
    with pytest.raises(UserError, match="alpha"):
        confidence_sequence(x, alpha=5)


LOOKS = ((4, 0.05), (6, 0.05), (9, 0.9))


def test_the_any_time_test_is_the_looks_tests_each_over_its_share() -> None:
    x = np.random.default_rng(5).normal(1.2, 1, 9)
    found = anytime(x, looks=LOOKS, margin=3.0)
    assert found.pvalue == pytest.approx(min(stats.ttest_1samp(x[:n], 0).pvalue / share for n, share in LOOKS))
    same = [equivalence(np.zeros(n), x[:n], margin=3.0) / share for n, share in LOOKS]
    assert found.p_equivalence == pytest.approx(min(same))
    bounds = [stats.t.interval(1 - 0.05 * w, n - 1, x[:n].mean(), stats.sem(x[:n])) for n, w in LOOKS]
    assert (found.low, found.high) == pytest.approx((max(low for low, _ in bounds), min(high for _, high in bounds)))
    assert (found.estimate, found.sd, found.n) == pytest.approx((x.mean(), x.std(ddof=1), 9))
    alone = anytime(x, looks=[(9, 1.0)])
    assert alone.pvalue == pytest.approx(paired_effect(np.zeros(9), x).pvalue) and alone.p_equivalence is None
    refused = {"to the 9": [(4, 0.5), (6, 0.5)], "sum to 1": [(4, 0.5), (9, 0.6)], "positive": [(9, 0.0)]}
    for said, broken in refused.items():
        with pytest.raises(UserError, match=said):
            anytime(x, looks=broken)
    with pytest.raises(UserError, match="identical"):
        anytime([0.5] * 4, looks=[(4, 1.0)])


def test_a_look_at_identical_differences_tests_nothing() -> None:
    """As of dead experts, of which the first seeds have none: no variance isn't certainty."""
    for first in (0.0, 0.25):
        x = np.array([first] * 4 + [-1.0, 2.0])
        found, last = anytime(x, looks=[(4, 0.2), (6, 0.8)], margin=0.5), anytime(x, looks=[(6, 0.8)], margin=0.5)
        assert found == last and found.pvalue > 0.05 and found.low < found.estimate < found.high


def test_a_difference_beyond_the_margin_is_not_equivalent() -> None:
    far = np.random.default_rng(6).normal(5, 0.1, 9)
    assert anytime(far, looks=LOOKS, margin=1.0).p_equivalence == 1.0
    assert anytime(far - 5, looks=LOOKS, margin=1.0).p_equivalence < 1e-3


def test_neither_claim_is_made_more_often_than_alpha_over_all_looks() -> None:
    draws = np.random.default_rng(7).normal(0, 1, (2000, 14))
    looks = [(n, 0.2 / 5) for n in range(4, 14, 2)] + [(14, 0.8)]
    differ = same = 0
    for x in draws:
        differ += anytime(x, looks=looks).pvalue < 0.05
        same += anytime(x + 1.0, looks=looks, margin=1.0).p_equivalence < 0.05  # at the margin itself
    bound = 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 2000)
    assert 0.025 < differ / 2000 < bound and 0.025 < same / 2000 < bound


def test_the_chance_of_a_verdict_is_what_happens() -> None:
    """Of studies whose first 6 of 12 differences look alike, the predicted share ends with a verdict (a flat prior)."""
    rng, needed, margin = np.random.default_rng(8), 0.02, 0.9
    means = rng.uniform(-6, 6, 20_000)
    x = means[:, None] + rng.normal(0, 1, (20_000, 12))
    ended = stats.ttest_1samp(x, 0, axis=1).pvalue < needed
    above = stats.ttest_1samp(x, -margin, axis=1, alternative="greater").pvalue
    ended |= np.maximum(above, stats.ttest_1samp(x, margin, axis=1, alternative="less").pvalue) < needed
    t6 = x[:, :6].mean(1) / x[:, :6].std(1, ddof=1) * math.sqrt(6)
    like = (np.abs(np.abs(t6) - 1.0) < 0.25) & (np.abs(x[:, :6].std(1, ddof=1) - 1) < 0.15)
    said = [chance_of_verdict(row[:6], 12, pvalue=needed, margin=margin) for row in x[like]]
    assert like.sum() > 100 and np.mean(said) == pytest.approx(ended[like].mean(), abs=0.09)
    assert chance_of_verdict(x[0, :6], 6, pvalue=needed) == 0.0 and chance_of_verdict([1.0], 6, pvalue=needed) == 1.0


def test_identical_differences_are_no_evidence_and_bound_nothing() -> None:
    assert not rejects([1.0, 1.0, -1.0, 2.0, -2.0, 0.0]) and not rejects([1.0] * 6)
    assert confidence_sequence([1.0, 1.0]) == (-math.inf, math.inf)
