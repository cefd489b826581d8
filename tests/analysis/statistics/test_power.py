import numpy as np
import pytest
from scipy import stats

from analysis.statistics.power import MAX_DETECTABLE, detectable_effect, power_of, reaches_significance, seeds_needed
from core.errors import UserError


def test_power_of_a_textbook_design() -> None:
    """Cohen 1988: d = 0.5, n = 34 pairs, two-sided 0.05 has power 0.81 (G*Power 0.8077775)."""
    assert power_of(0.5, 34) == pytest.approx(0.8077775, abs=1e-5)
    assert seeds_needed(0.5) == 34


def test_power_is_the_noncentral_t_where_scipy_can_compute_it() -> None:
    for effect, n in ((0.8, 20), (1.2, 8), (0.3, 50)):
        critical, shift = stats.t.isf(0.025, n - 1), effect * n**0.5
        exact = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        assert power_of(effect, n) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(("n", "comparisons"), [(2, 1), (3, 3), (5, 8), (8, 1)])
def test_the_detectable_effect_is_detected_that_often(n: int, comparisons: int) -> None:
    effect = detectable_effect(n, comparisons=comparisons)
    draws = np.random.default_rng(n).standard_normal((60_000, n)) + effect
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / comparisons).mean()
    assert found == pytest.approx(0.8, abs=0.008)


def test_more_seeds_see_more_and_more_comparisons_see_less() -> None:
    effects = [detectable_effect(n) for n in range(2, 30)]
    assert effects == sorted(effects, reverse=True)
    assert detectable_effect(5, comparisons=8) > detectable_effect(5)


@pytest.mark.parametrize("comparisons", [1, 3, 8, 20])
def test_seeds_needed_is_the_smallest_number_that_does(comparisons: int) -> None:
    needed = seeds_needed(1.5, comparisons=comparisons)
    assert detectable_effect(needed, comparisons=comparisons) <= 1.5
    assert detectable_effect(needed - 1, comparisons=comparisons) > 1.5


@pytest.mark.parametrize("comparisons", [1, 3, 8])
def test_a_refusal_names_a_number_that_is_accepted(comparisons: int) -> None:
    refused = reaches_significance(2, comparisons=comparisons)
    assert not refused.ok and refused.detectable_effect > MAX_DETECTABLE
    assert reaches_significance(refused.seeds_needed, comparisons=comparisons).ok
    assert not reaches_significance(refused.seeds_needed - 1, comparisons=comparisons).ok
    assert not reaches_significance(1, comparisons=comparisons).ok


def test_nonsense_is_refused() -> None:
    for call in (lambda: detectable_effect(1), lambda: seeds_needed(0), lambda: seeds_needed(1e-9)):
        with pytest.raises(UserError):
            call()
