"""Arms by length: a planted difference, at which length it lies, and none where there is none."""

import numpy as np
import pytest
from scipy import stats

from analysis.verdicts.lengths import by_length

LENGTHS = (8, 16, 32, 64)


def values(effect_at: dict[int, float], seeds: int = 8, rng_seed: int = 0) -> dict[str, dict[int, dict[int, float]]]:
    rng = np.random.default_rng(rng_seed)
    block = rng.normal(3, 0.3, seeds)
    return {
        arm: {
            seed: {n: block[seed] + 4 / n + shift * effect_at.get(n, 0.0) + rng.normal(0, 0.01) for n in LENGTHS}
            for seed in range(seeds)
        }
        for arm, shift in (("control", 0.0), ("arm", 1.0))
    }


def test_what_short_sequences_gain_is_found_at_their_length_and_as_a_slope() -> None:
    base, row = by_length(values({8: -0.3, 16: -0.15}), "control")
    assert base.slope is None and not base.p_holm and set(base.means) == set(LENGTHS)
    assert row.p_holm[8] < 0.001 and row.p_holm[16] < 0.001 and row.p_holm[32] > 0.05 and row.p_holm[64] > 0.05
    assert row.effects[8] and row.effects[8].estimate == pytest.approx(-0.3, abs=0.03)
    least_squares = np.polyfit(np.log2(LENGTHS), (-0.3, -0.15, 0, 0), 1)[0]
    assert row.slope and row.slope.estimate == pytest.approx(least_squares, abs=0.02)
    assert row.p_slope is not None and row.p_slope < 0.001


def test_a_length_is_compared_as_any_metric_is() -> None:
    made = values({})
    row = by_length(made, "control")[1]
    known = stats.ttest_rel([at[32] for at in made["arm"].values()], [at[32] for at in made["control"].values()])
    assert row.effects[32] and row.effects[32].pvalue == pytest.approx(known.pvalue)


def test_nothing_is_claimed_without_a_difference_or_with_too_few_seeds() -> None:
    found = [by_length(values({}, rng_seed=n), "control")[1] for n in range(60)]
    assert sum(min(row.p_holm.values()) < 0.05 for row in found) <= 8  # of 60 at 5 %: more by chance in 1 of 450
    few = by_length(values({8: -0.3}, seeds=2), "control")[1]
    assert few.slope is None and not few.p_holm and few.means[8] > 0
    same = by_length({arm: values({})["control"] for arm in ("control", "copy")}, "control")[1]
    assert same.effects[8] is None and not same.p_holm


def test_an_arm_of_another_kind_of_number_is_not_compared() -> None:
    row = by_length(values({8: -0.3}), "control", ["arm"])[1]
    assert not row.p_holm and row.slope is None and set(row.effects.values()) == {None} and row.means[8] > 0
