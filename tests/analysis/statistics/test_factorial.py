"""Contrasts in blocked factorials: known answers, error rates, bad tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.statistics.factorial import interactions, main_effects
from core.errors import UserError


def table(blocks: int, noise: float = 0.1, key: int = 0, **effects: float) -> pd.DataFrame:
    """Two by two by three cells in blocks; effects: a, b, ab, of the upper levels."""
    rng = np.random.default_rng(key)
    rows = []
    for seed in range(blocks):
        level = rng.normal(0, 1)
        for a, b, c in itertools.product((0, 1), ("no", "yes"), (1, 2, 4)):
            up = b == "yes"
            mean = effects.get("a", 0) * a + effects.get("b", 0) * up + effects.get("ab", 0) * a * up
            rows.append({"seed": seed, "value": level + mean + rng.normal(0, noise), "a": a, "b-yes": b, "c": c})
    return pd.DataFrame(rows)


def test_main_effects_average_over_the_other_factors() -> None:
    found = main_effects(table(8, noise=1e-3, a=0.5, b=-0.2, ab=0.4))
    effects = {(c.factors[0], c.levels[0]): c.effect.estimate for c in found.contrasts}
    assert effects["a", 1] == pytest.approx(0.5 + 0.2, abs=2e-3)
    assert effects["b-yes", "yes"] == pytest.approx(-0.2 + 0.2, abs=2e-3)
    assert set(effects) == {("a", 1), ("b-yes", "yes"), ("c", 2), ("c", 4)}


def test_an_interaction_is_the_difference_of_differences() -> None:
    found = interactions(table(8, noise=1e-3, a=0.5, b=-0.2, ab=0.4))
    contrast = next(c for c in found.contrasts if c.factors == ("a", "b-yes"))
    assert contrast.effect.estimate == pytest.approx(0.4, abs=2e-3)
    assert contrast.p_holm < 1e-6
    assert {c.factors for c in found.contrasts} == {("a", "b-yes"), ("a", "c"), ("b-yes", "c")}


def test_intervals_have_the_coverage_that_is_asked_for() -> None:
    made = table(6, a=0.1)
    wide, narrow = (main_effects(made, alpha=alpha).contrasts[0].effect for alpha in (0.05, 0.1))
    shorter = stats.t.ppf(0.95, 5) / stats.t.ppf(0.975, 5)
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) * shorter)


@pytest.mark.parametrize("repeats", [50, pytest.param(150, marks=pytest.mark.slow)])
def test_error_rates_hold_over_the_family(repeats: int) -> None:
    made = (table(6, key=key, a=1.0, b=1.0).query("c != 4") for key in range(repeats))
    family = np.mean([any(c.p_holm < 0.05 for c in interactions(each).contrasts) for each in made])
    assert family < 0.05 + 2.6 * (0.05 * 0.95 / repeats) ** 0.5


def test_reference_levels_may_be_chosen() -> None:
    made = table(4, a=0.5)
    down = main_effects(made, reference={"a": 1}).contrasts[0]
    assert (down.levels, down.reference) == ((0,), (1,))
    assert down.effect.estimate == pytest.approx(-main_effects(made).contrasts[0].effect.estimate)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda t: t.drop(index=5), "no row for seed 0, a 0, b-yes yes, c 4"),
        (lambda t: pd.concat([t, t[:1]]), "two rows of the same block"),
        (lambda t: t.assign(value=np.nan), "aren't finite"),
        (lambda t: t[t.seed == 0], "at least 2 of them"),
        (lambda t: t.assign(a=1), "a single level"),
        (lambda t: t[["seed", "value"]], "no factor"),
        (lambda t: t.rename(columns={"value": "nelbo"}), "no column 'value'"),
    ],
)
def test_tables_that_answer_nothing_are_refused(broken, said: str) -> None:
    with pytest.raises(UserError, match=said):
        main_effects(broken(table(3)))


def test_one_factor_has_no_interaction() -> None:
    with pytest.raises(UserError, match="needs two factors"):
        interactions(table(3)[lambda t: (t["b-yes"] == "no") & (t.c == 1)][["seed", "value", "a"]])
