import numpy as np
import pytest
from scipy import stats

from analysis.statistics.power import (
    MAX_DETECTABLE,
    allocate,
    detectable_effect,
    power_of,
    reaches_significance,
    seeds_needed,
)
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


def test_a_budget_goes_where_the_noise_is() -> None:
    common = {"budget": 400.0, "sd_seed": 0.02}
    quiet, loud = (allocate(10.0, 0.1, sd_eval=sd, **common) for sd in (0.002, 0.2))
    assert quiet.seeds > loud.seeds and quiet.evaluations < loud.evaluations
    assert quiet.cost <= 400 and loud.cost <= 400 and quiet.detectable < loud.detectable
    # With few batches of much noise the optimum is sd_eval / sd_seed sqrt(cost_train / cost_eval).
    assert loud.evaluations == pytest.approx(0.2 / 0.02 * (10 / 0.1) ** 0.5, rel=0.6)


def test_what_to_buy_next() -> None:
    common = {"sd_seed": 0.02, "budget": 400.0}
    assert allocate(10.0, 0.1, sd_eval=0.0, **common).next == "seeds"
    assert allocate(10.0, 0.1, sd_eval=0.0, growth=8.0, **common).next == "tokens"
    assert allocate(10.0, 0.1, sd_eval=0.2, now=(6, 4), **common).next == "evaluations"


def test_the_allocation_sees_what_it_says() -> None:
    found = allocate(10.0, 0.5, sd_seed=0.02, sd_eval=0.05, budget=600.0)
    rng = np.random.default_rng(0)
    sd = np.hypot(0.02, 0.05 / found.evaluations**0.5)
    draws = rng.normal(found.detectable, sd, (2000, found.seeds))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": 10.0}, "two pairs"),
        ({"cost_train": -1.0}, "cost_train must be positive"),
        ({"sd_seed": -1.0}, "at least 0"),
    ],
)
def test_an_allocation_that_cannot_be_is_refused(change, said: str) -> None:
    given = {"cost_train": 10.0, "cost_eval": 0.1, "sd_seed": 0.02, "sd_eval": 0.1, "budget": 400.0} | change
    with pytest.raises(UserError, match=said):
        allocate(**given)
