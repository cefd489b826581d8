"""Tails and quantiles through scipy.special are those of scipy.stats, which takes half a second more to import."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.routing.profile import paired_change
from analysis.statistics import power, roots, sequential
from analysis.statistics.clustered import ClusteredMean, clustered_mean, mcnemar
from analysis.statistics.compare import equivalence, paired_effect
from analysis.statistics.selection import confirm
from core.errors import UserError

ALPHAS = (0.2, 0.05, 0.01, 1e-3, 1e-6)
CASES = list(itertools.product((2, 3, 5, 20, 500), (0.0, 0.3, 2.0, 30.0, 1e4)))
exactly = {"rel": 1e-12, "abs": 0.0}


def pairs(n: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((n, int(effect * 10)))
    control = rng.normal(0, 3, n)
    return control, control + effect + rng.normal(0, 1, n)


@pytest.mark.parametrize(("n", "effect"), CASES)
def test_paired_t_tests(n: int, effect: float) -> None:
    control, arm = pairs(n, effect)
    wanted = stats.ttest_rel(arm, control)
    for alpha in ALPHAS:
        found, ends = paired_effect(control, arm, alpha=alpha), wanted.confidence_interval(1 - alpha)
        assert found.pvalue == pytest.approx(wanted.pvalue, **exactly)
        # scipy's own quantile is of 1 - alpha / 2, which has lost some of alpha's digits
        reach = stats.t.isf(alpha / 2, n - 1) * stats.sem(arm - control)
        assert found.high - found.low == pytest.approx(2 * reach, rel=1e-11)
        assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "effect"), CASES)
def test_equivalence(n: int, effect: float) -> None:
    control, arm = pairs(n, effect)
    for margin in (0.01, 0.5, 3.0, 100.0):
        above = stats.ttest_1samp(arm - control, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(arm - control, margin, alternative="less").pvalue
        assert equivalence(control, arm, margin=margin) == pytest.approx(max(above, below), **exactly)
    with pytest.raises(UserError, match="identical"):
        equivalence(control, control, margin=1.0)


def test_clustered_answers() -> None:
    for df, t in itertools.product((1, 2, 5, 99), (0.0, -1e-3, 0.7, -3.0, 40.0, 1e6)):
        found = ClusteredMean(t, 0.0, 0.0, 1.0, df)
        assert found.pvalue() == pytest.approx(2 * stats.t.sf(abs(t), df), **exactly)
        wanted = max(stats.t.cdf(t - 0.5, df), stats.t.sf(t + 0.5, df))
        assert found.p_equivalence(0.5) == pytest.approx(wanted, **exactly)
    certain = ClusteredMean(0.1, 0.1, 0.1, 0.0, 5)
    assert (certain.pvalue(), certain.p_equivalence(0.2), certain.p_equivalence(0.05)) == (0.0, 0.0, 1.0)
    values = np.random.default_rng(0).normal(0.3, 1, (4, 30))
    for alpha in ALPHAS:
        one = clustered_mean(values, alpha=alpha)
        assert one.high - one.estimate == pytest.approx(stats.t.isf(alpha / 2, 3) * one.se, **exactly)
    difference = np.random.default_rng(1).integers(-1, 2, (3, 200)) + (np.arange(200) < 40)
    by_prompt = difference.sum(0)
    wanted = stats.chi2.sf(by_prompt.sum() ** 2 / (by_prompt**2).sum(), 1)
    assert mcnemar(difference) == pytest.approx(wanted, **exactly)


def test_changes_and_confirmations() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(0, 1, (120, 5)), rng.normal(0.02, 1, (120, 5))
    change_G = (after - before).mean(1)
    fresh = rng.normal(0, 1, 7)
    for alpha in ALPHAS:
        found, wanted = paired_change(before, after, alpha=alpha), stats.ttest_1samp(change_G, 0)
        assert found.pvalue == pytest.approx(wanted.pvalue, **exactly)
        reach = stats.t.isf(alpha / 2, 119) * stats.sem(change_G)
        assert found.high - found.mean == pytest.approx(reach, rel=1e-11)
        chosen = confirm(fresh, alpha=alpha)
        half = stats.t.isf(alpha / 2, 6) * stats.sem(fresh)
        assert chosen.high - chosen.estimate == pytest.approx(half, rel=1e-11)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 300, 9000])
def test_power(n: int) -> None:
    for alpha, effect in itertools.product(ALPHAS, (1e-3, 0.4, 3.0, 200.0)):
        sd_Q = np.sqrt(stats.chi2.ppf(power.NODES_Q, n - 1) / (n - 1))
        beyond_Q, shift = stats.t.isf(alpha / 2, n - 1) * sd_Q, effect * math.sqrt(n)
        wanted = power.WEIGHTS_Q @ (stats.norm.cdf(shift - beyond_Q) + stats.norm.cdf(-shift - beyond_Q))
        assert power.power_of(effect, n, alpha=alpha) == pytest.approx(wanted, **exactly)


def test_quadrature() -> None:
    for n in (2, 5, 400):
        nodes, weights = np.polynomial.legendre.leggauss(n)
        found_Q, weights_Q = power._quadrature(n)
        assert 2 * found_Q - 1 == pytest.approx(nodes, rel=1e-12, abs=1e-15)
        assert 2 * weights_Q == pytest.approx(weights, rel=1e-8)


def test_factors_and_roots() -> None:
    for n, bound in itertools.product((2, 5, 40), (math.log(20), math.log(5000))):
        if math.isfinite(critical := sequential._critical(n, bound)):
            assert sequential._log_factor(critical, n, 1.0) == pytest.approx(bound, rel=1e-9)
    for where in (1e-5, 0.3, 7.0, 4e8):
        found = roots.root(lambda x, where=where: x - where, 0.0, 1e9)
        assert found == pytest.approx(optimize.brentq(lambda x, where=where: x - where, 0.0, 1e9), rel=1e-11, abs=1e-11)
