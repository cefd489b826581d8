"""Successive halving against what its papers say."""

from collections import Counter

import numpy as np
import pytest

from sweeps.search.rungs import ETA, bracket_of, expected_steps, promotable, rungs_of


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(81, 1, (3, 9, 27, 81)), (216, 24, (24, 72, 216)), (400, 50, (50, 150, 400)), (10, 0, (10,)), (10, 10, (10,))],
)
def test_rungs_are_thirds_at_validations(steps, every, expected) -> None:
    assert rungs_of(steps, every) == expected


def test_hyperband_gives_each_bracket_its_share() -> None:
    given = Counter(bracket_of(index, 4) for index in range(540))
    weights = np.array([27, 12, 6, 4])  # ceil((s_max + 1) / (s + 1) 3^s), s = 3, 2, 1, 0
    assert [given[b] for b in range(4)] == pytest.approx(540 * weights / weights.sum(), abs=1)
    assert {bracket_of(index, 1) for index in range(5)} == {0}


def test_what_halving_is_expected_to_train() -> None:
    assert expected_steps(9, (4, 12, 36)) == 9 * 4 + 3 * 8 + 1 * 24
    assert expected_steps(2, (4, 12, 36)) == 2 * 4 + 8 + 24  # something is trained to the end whatever the budget
    assert expected_steps(5, (36,)) == 5 * 36
    brackets = Counter(bracket_of(index, 3) for index in range(18))  # 10, 5, 3: see Hyperband's shares
    assert brackets == {0: 10, 1: 5, 2: 3}
    assert expected_steps(18, (4, 12, 36), hyperband=True) == (40 + 3 * 8 + 24) + (5 * 12 + 24) + 3 * 36


def test_the_best_third_of_a_rung_goes_on_once_it_is_known() -> None:
    values = {0: {0: 3.0, 1: 1.0}}
    assert promotable(values, {0: 0, 1: 0}, last=False) is None  # one of two isn't the best third of anything
    values[0][2] = 2.0
    assert promotable(values, {0: 0, 1: 0, 2: 0}, last=False) == 1
    assert promotable(values, {0: 0, 2: 0}, last=False) is None  # 1 trains
    values[0] |= {3: 0.5, 4: 4.0, 5: 5.0}
    assert promotable(values, {0: 0, 2: 0, 3: 0, 4: 0, 5: 0}, last=False) == 3
    higher = values | {1: {1: 1.0, 3: 0.4, 6: 2.0}}
    assert promotable(higher, {1: 1, 3: 1, 6: 1, 2: 0}, last=False) == 3  # higher rungs first


def test_in_the_end_one_of_each_rung_goes_on() -> None:
    values = {0: {0: 3.0, 1: 1.0}}
    assert promotable(values, {0: 0, 1: 0}, last=True) == 1
    assert promotable(values, {0: 0}, last=True) is None
    assert promotable({}, {}, last=True) is None


def test_halving_keeps_a_third_at_every_rung() -> None:
    rng = np.random.default_rng(0)
    reached, waiting = {0: {}, 1: {}}, {}
    done = 0
    for number in range(90):
        reached[0][number], waiting[number] = float(rng.normal()), 0
        while (chosen := promotable(reached, waiting, last=False)) is not None:
            if waiting.pop(chosen) == 0:
                reached[1][chosen], waiting[chosen] = reached[0][chosen] + float(rng.normal(0, 0.1)), 1
            else:
                done += 1
    # Asynchronous: a few of the early ones go on that the later ones would have beaten.
    assert 90 // ETA <= len(reached[1]) <= 90 // ETA + 8
    assert 90 // ETA**2 <= done <= 90 // ETA**2 + 5


def test_a_rungs_value_is_the_one_measured_there_whatever_came_after():
    from core.records.run_record import RunRecord
    from sweeps.search.rungs import metrics_at

    measured = {"step": [10.0, 30.0], "val/nelbo": [3.0, 2.0]}
    record = RunRecord(
        status="complete", run_hash="", arm_hash="", seed=0, config={}, metrics={"val/nelbo": 2.0}, validation=measured
    )
    assert metrics_at(record, 10) == {"step": 10.0, "val/nelbo": 3.0}
    assert metrics_at(record, 20) is None


def test_of_values_that_are_equal_but_for_rounding_the_first_goes_on() -> None:
    for off in (1 - 1e-13, 1.0, 1 + 1e-13):
        values = {0: {0: 3.0, 1: 2.0, 2: 2.0 * off}}
        assert promotable(values, {0: 0, 1: 0, 2: 0}, last=False) == 1
