"""Sharing of a law between families, judged on models that weren't fitted; and the band's coverage."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.scaling.families import ONE_E, OWN, Form, Runs, choose, compare, fit
from analysis.scaling.fitting import fit_law, resampled


def runs_of(floors: tuple[float, float], alphas: tuple[float, float], noise: float = 0.0, seed: int = 0) -> Runs:
    """Two families with laws of their own: 4 sizes x 3 numbers of tokens each."""
    rng, parts = np.random.default_rng(seed), []
    n, d = (column.ravel() for column in np.meshgrid([1e6, 2e6, 4e6, 8e6], [2e7, 1e8, 5e8]))
    for place, (floor, alpha) in enumerate(zip(floors, alphas, strict=True)):
        loss = (floor + 60 * n**-alpha + 400 * d**-0.35) * np.exp(rng.normal(0, noise, len(n)))
        parts.append((np.full(len(n), f"f{place}"), n, d, loss, np.full(len(n), 1.0 + 3 * place), np.ones(len(n))))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Runs(*columns, point=np.arange(len(columns[0])))


@pytest.fixture(scope="module")
def different() -> Runs:
    return runs_of((1.5, 1.5), (0.25, 0.4), noise=0.001)


def test_the_form_that_holds_at_the_largest_models_is_kept(different) -> None:
    forms = {form.name: form for form in compare(different)}
    assert [form.coefficients for form in forms.values()] == [5, 6, 9, 10]
    kept = choose(list(forms.values()))
    one_law = forms["one law"].error
    assert kept.name in (ONE_E, OWN) and kept.error is not None and (one_law is None or one_law > 5 * kept.error)


def test_a_family_of_one_model_leaves_no_law_of_its_own_to_be_judged(different) -> None:
    few = runs_of((1.5, 1.5), (0.3, 0.3)).of("f0")
    lone = few.where(few.parameters == 4e6)
    lone = replace(lone, family=np.full(len(lone.loss), "lone"), sparsity=np.full(len(lone.loss), 16.0))
    runs = Runs(**{name: np.concatenate([column, getattr(lone, name)]) for name, column in vars(different).items()})
    assert [form.name for form in compare(runs)] == ["one law", "one law with sparsity"]


def test_one_e_is_one_and_the_rest_is_each_familys(different) -> None:
    laws = fit(different, Form(ONE_E, (), 9, None))
    assert laws["f0"].E == laws["f1"].E == pytest.approx(1.5, rel=0.02)
    assert laws["f0"].alpha == pytest.approx(0.25, abs=0.03) and laws["f1"].alpha == pytest.approx(0.4, abs=0.06)


def test_the_simplest_of_nearly_equal_forms_is_kept() -> None:
    errors = {"one law": 0.0104, "with": 0.0102, "each": 0.0100}
    forms = [Form(name, (), place, error) for place, (name, error) in enumerate(errors.items())]
    assert choose(forms).name == "one law"
    assert choose([replace(forms[0], error=0.011), *forms[1:]]).name == "with"


def test_seeds_of_a_point_are_drawn_together() -> None:
    labels = np.repeat(np.arange(5), 3)
    for repeat in range(20):
        drawn = resampled(15, labels, np.random.default_rng(repeat))
        assert all(count % 3 == 0 for count in np.bincount(labels[drawn], minlength=5)) and len(drawn) == 15
    alone = resampled(15, None, np.random.default_rng(0))
    assert alone.tolist() == np.random.default_rng(0).integers(0, 15, 15).tolist()


@pytest.mark.slow
def test_the_band_covers_the_truth_ten_times_outside_of_the_runs() -> None:
    covered, repeats = 0, 16
    for repeat in range(repeats):
        runs = runs_of((1.5, 1.5), (0.3, 0.3), noise=0.005, seed=repeat)
        law = fit_law(**runs.columns(), bootstrap=60, rng=np.random.default_rng(repeat), together=runs.point)
        low, high = law.band(8e7, 5e9)
        covered += low <= 1.5 + 60 * 8e7**-0.3 + 400 * 5e9**-0.35 <= high
    assert covered >= 13  # of 16 at 95 %: fewer by chance in 1 of 140
