"""Entropies of enumerated distributions, and the jackknife on statistics whose bias is known."""

import math

import numpy as np
import pytest

from analysis.statistics.information import (
    dependent_share,
    expert_entropy,
    jackknife,
    jensen_shannon,
    mutual_information,
    plain_tables,
)

LN2 = math.log(2)


def entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares if share)


def test_information_of_an_enumerated_distribution() -> None:
    # Visible (4 of 12): t says the expert. Masked (8 of 12): at t = 0 it is expert 0, at t = 1 either.
    table = np.array([[[2, 0], [0, 2]], [[4, 0], [2, 2]]])
    masked = entropy(0.75, 0.25) - LN2 / 2
    assert mutual_information(table) == pytest.approx(LN2 / 3 + 2 / 3 * masked)
    assert expert_entropy(table) == pytest.approx(LN2 / 3 + 2 / 3 * entropy(0.75, 0.25))
    assert dependent_share(table) == pytest.approx(mutual_information(table) / expert_entropy(table))
    np.testing.assert_allclose(jensen_shannon(table), [LN2, masked])


def test_no_information_where_the_bins_have_the_same_shares() -> None:
    table = np.array([[[1, 2, 3], [10, 20, 30]], [[0, 0, 0], [5, 5, 0]]])
    assert mutual_information(table) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(jensen_shannon(table), 0, atol=1e-12)  # a bin without tokens is left out
    one_expert = np.array([[[3, 0], [4, 0]]])
    assert mutual_information(one_expert) == pytest.approx(0, abs=1e-12) and np.isnan(dependent_share(one_expert))


def test_divergence_weighs_all_bins_alike_whatever_their_tokens() -> None:
    few, many = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]), np.array([[[90, 0, 0], [0, 1, 0], [0, 0, 7]]])
    assert jensen_shannon(few)[0] == pytest.approx(math.log(3))
    assert jensen_shannon(many)[0] == pytest.approx(math.log(3))


def test_tables_without_a_sequence_are_those_of_the_others() -> None:
    rng = np.random.default_rng(0)
    counts, bins = rng.integers(0, 5, (6, 2, 3)), np.array([0, 1, 1, 0, 2, 2])
    table, without = plain_tables(counts, bins)
    assert table[1, 2].tolist() == (counts[4, 1] + counts[5, 1]).tolist()
    for g in range(6):
        others = np.arange(6) != g
        expected = [[counts[others & (bins == b), m].sum(0) for b in range(3)] for m in range(2)]
        np.testing.assert_array_equal(without[g], expected)


@pytest.mark.parametrize("power", [1, 2])
def test_the_jackknife_of_a_mean_and_of_its_square(power: int) -> None:
    """The square of a mean is biased by the mean's variance, which the jackknife estimates exactly."""
    x = np.random.default_rng(power).normal(size=20)
    table, without = x.sum()[None, None, None], (x.sum() - x)[:, None, None, None]

    def statistic(sums: np.ndarray) -> np.ndarray:
        return (sums[..., 0, 0, 0] / (20 if sums.ndim == 3 else 19)) ** power

    found, variance = jackknife(statistic, table, without), x.var(ddof=1) / 20
    assert found.value == pytest.approx(x.mean() if power == 1 else x.mean() ** 2 - variance)
    assert power == 2 or found.standard_error == pytest.approx(math.sqrt(variance))
