"""Values in order, where rounding isn't to choose."""

import math

import numpy as np
import pytest

from core.runtime.units import below, ranked


def test_values_come_from_the_smallest_on_and_ties_as_they_came() -> None:
    assert ranked([3.0, 1.0, 2.0]) == [1, 2, 0]
    assert ranked([0.3, 0.1 + 0.2, 0.2, 0.3]) == [2, 0, 1, 3]
    assert ranked([]) == [] and ranked([math.inf, 1.0]) == [1, 0]
    assert ranked([-1.0, -1.0 - 1e-12]) == [0, 1] and ranked([0.0, -1e-300]) == [1, 0]


def test_rounding_does_not_change_the_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.choice([2.5, 2.5001, 2.6, 3.0], 8)
        assert ranked((values * (1 + 1e-13 * rng.uniform(-1, 1, 8))).tolist()) == ranked(values.tolist())


@pytest.mark.parametrize(("one", "two", "said"), [
    (1.0, 2.0, True), (1.0, 1.0 + 1e-12, False), (1.0, 1.0 + 1e-6, True), (2.0, 1.0, False), (1.0, math.inf, True),
    (math.nan, 1.0, False),
])  # fmt: skip
def test_below_is_by_more_than_rounding(one: float, two: float, said: bool) -> None:
    assert below(one, two) is said
