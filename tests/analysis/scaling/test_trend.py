"""Trends of other quantities with scale, and the minimum of an IsoFLOP curve."""

import math

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.scaling.isoflop import counted_cost, curve, law_minimum, measured_minimum
from analysis.scaling.law import ScalingLaw
from analysis.scaling.trend import Interval, Trend, fit_trend
from core.errors import UserError

N, D = (column.ravel() for column in np.meshgrid([1e6, 3e6, 1e7], [1e8, 5e8, 2e9]))


def test_a_power_law_without_noise_is_found_exactly() -> None:
    trend = fit_trend(N, D, 0.3 * N**0.2 * D**-0.1)
    assert trend.parameters.value == pytest.approx(0.2) and trend.tokens.value == pytest.approx(-0.1)
    assert trend.predict(1e9, 1e12).value == pytest.approx(0.3 * 1e9**0.2 * 1e12**-0.1)


def test_it_equals_statsmodels() -> None:
    y = 0.3 * N**0.2 * D**-0.1 * np.exp(np.random.default_rng(0).normal(0, 0.1, len(N)))
    fitted = sm.OLS(np.log(y), np.column_stack([np.ones(len(N)), np.log(N), np.log(D)])).fit()
    trend = fit_trend(N, D, y)
    assert (trend.parameters.low, trend.parameters.high) == pytest.approx(tuple(fitted.conf_int()[1]))
    frame = fitted.get_prediction(np.array([[1, np.log(1e9), np.log(1e12)]])).summary_frame()
    at = trend.predict(1e9, 1e12)
    assert (at.low, at.high) == pytest.approx((np.exp(frame.obs_ci_lower[0]), np.exp(frame.obs_ci_upper[0])))


def test_the_band_covers_another_point_far_outside_95_times_in_100() -> None:
    covered, repeats = 0, 500
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        trend = fit_trend(N, D, 0.3 * N**0.2 * D**-0.1 * np.exp(rng.normal(0, 0.2, len(N))))
        band = trend.predict(1e9, 1e12)
        covered += band.low <= 0.3 * 1e9**0.2 * 1e12**-0.1 * np.exp(rng.normal(0, 0.2)) <= band.high
    assert 0.925 < covered / repeats < 0.975


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, d, y: (n[:5], d[:5], y[:5]), "5 points are too few"),
        (lambda n, d, y: (n, d, y - y.min()), "aren't positive"),
        (lambda n, d, y: (n**0.1, d, y), "parameters differ by less than a factor of 4"),
        (lambda n, d, y: (n, 20 * n, y), "proportional"),
    ],
)
def test_what_has_no_trend_is_refused(change, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit_trend(*change(N, D, N**0.5))


def test_the_vertex_of_a_valley_and_none_where_there_is_no_valley() -> None:
    sizes = np.array([1e6, 2e6, 4e6, 8e6])
    found = measured_minimum(sizes, 2 + 0.1 * (np.log(sizes) - np.log(3e6)) ** 2)
    assert found is not None and found.parameters == pytest.approx(3e6) and found.loss == pytest.approx(2)
    assert measured_minimum(sizes, np.log(sizes)) is None  # it falls towards smaller models than were trained
    assert measured_minimum(sizes, -((np.log(sizes) - np.log(3e6)) ** 2)) is None
    assert measured_minimum(sizes[:2], [1.0, 2.0]) is None


def test_where_cost_is_6n_the_laws_minimum_is_the_closed_form() -> None:
    plain = ScalingLaw(
        A=400, B=2000, E=1.8, alpha=0.3, beta=0.4, ranges={"parameters": (1e7, 1e10), "tokens": (1e8, 1e11)}
    )
    law = ScalingLaw(**{**vars(plain), "samples": ((np.log(400), np.log(2000), np.log(1.8), 0.3, 0.4),) * 3})
    cost = counted_cost([1e6, 1e9], [6e6, 6e9])
    parameters, tokens, loss = law_minimum(law, 1e21, cost, {})
    exact = law.compute_optimal(1e21)
    assert parameters.value == pytest.approx(exact[0], rel=0.01) and tokens.value == pytest.approx(exact[1], rel=0.01)
    assert loss == pytest.approx(float(law.predict(*exact)), rel=1e-5)
    assert curve(law, 1e21, cost, np.array([1e8]), {})[0] == pytest.approx(1e21 / 6e8)


def test_attention_is_part_of_what_a_token_costs() -> None:
    cost = counted_cost([1e6, 1e8], [6 * 2e6, 6 * 1.1e8])
    assert cost(np.array([1e6, 1e8, 1e10])) == pytest.approx([12e6, 6.6e8, 6.6e10])


def test_a_steep_trend_far_away_is_a_number() -> None:
    one = Interval(40.0, 30.0, 50.0)
    steep = Trend(one, one, 0.1, 9, (0.0, 40.0, 40.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    assert all(math.isfinite(value) for value in vars(steep.predict(1.4e9, 2e13)).values())
