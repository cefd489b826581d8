"""Contrasts and F tests in blocked factorials: known answers, error rates, bad tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.anova import AnovaRM

from analysis.factorial import interactions, main_effects
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
    assert [test.factors for test in found.tests] == [("a", "b-yes"), ("a", "c"), ("b-yes", "c"), ("a", "b-yes", "c")]


def test_the_f_test_of_two_levels_is_the_paired_t_test() -> None:
    found = main_effects(table(6, a=0.1))
    effect, test = found.contrasts[0].effect, found.tests[0]
    assert test.statistic == pytest.approx((effect.estimate / effect.sd) ** 2 * effect.n)
    assert test.pvalue == pytest.approx(effect.pvalue)
    assert (test.numerator_df, test.denominator_df) == (1, 5)


def test_the_f_test_of_three_levels_equals_sums_of_squares_by_hand() -> None:
    cells = np.array([[8.0, 7, 6], [9, 5, 2], [6, 2, 3], [5, 3, 1], [8, 4, 5]])
    rows = [{"seed": s, "value": cells[s, c], "dose": c} for s in range(5) for c in range(3)]
    [test] = main_effects(pd.DataFrame(rows)).tests
    residual = cells - cells.mean(1, keepdims=True) - cells.mean(0) + cells.mean()
    between = 5 * ((cells.mean(0) - cells.mean()) ** 2).sum() / 2
    assert test.statistic == pytest.approx(between / ((residual**2).sum() / 8))
    assert test.pvalue == pytest.approx(stats.f.sf(test.statistic, 2, 8))


@pytest.mark.parametrize(("blocks", "key", "effects"), [(3, 0, {}), (6, 1, {"a": 0.1}), (40, 2, {"a": 0.5, "ab": 0.3})])
def test_f_tests_equal_statsmodels(blocks: int, key: int, effects: dict[str, float]) -> None:
    made = table(blocks, key=key, **effects)
    renamed = made.rename(columns={"b-yes": "b"})  # formulas choke on names such as "b-yes"
    fitted = AnovaRM(renamed, "value", "seed", within=["a", "b", "c"]).fit().anova_table
    found = {
        ":".join(test.factors).replace("b-yes", "b"): test
        for f in (main_effects, interactions)
        for test in f(made).tests
    }
    assert list(found) == list(fitted.index)
    for name, test in found.items():
        row = fitted.loc[name]
        assert (test.numerator_df, test.denominator_df) == (row["Num DF"], row["Den DF"])
        assert test.statistic == pytest.approx(row["F Value"], rel=1e-8)
        assert test.pvalue == pytest.approx(row["Pr > F"], rel=1e-8)


def test_error_rates_hold_over_the_family() -> None:
    made = (table(6, key=key, a=1.0, b=1.0).query("c != 4") for key in range(150))
    family = np.mean([any(c.p_holm < 0.05 for c in interactions(each).contrasts) for each in made])
    assert family < 0.05 + 2.6 * (0.05 * 0.95 / 150) ** 0.5


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
