"""Scaling laws: the published re-fit of Chinchilla's runs, planted laws, forms judged where they weren't fitted."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.scaling.families import Form, Runs, compare
from analysis.scaling.fitting import fit_law
from analysis.scaling.law import ScalingLaw
from core.errors import UserError

RUNS = Path(__file__).parent / "chinchilla.csv"


@pytest.fixture(scope="module")
def chinchilla() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Besiroglu et al.'s reading of Hoffmann et al.'s Figure 4, without the five highest losses, as they fitted it."""
    rows = [tuple(map(float, row.values())) for row in csv.DictReader(RUNS.open())]
    parameters, flops, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    return parameters, flops / 6 / parameters, loss


def test_the_published_refit_of_chinchilla(chinchilla) -> None:
    law = fit_law(*chinchilla)
    assert pytest.approx(477.8, rel=2e-3) == law.A and pytest.approx(2143, rel=2e-3) == law.B
    assert pytest.approx(1.8172, abs=2e-4) == law.E
    assert (law.alpha, law.beta) == (pytest.approx(0.3473, abs=2e-4), pytest.approx(0.3672, abs=2e-4))
    parameters, tokens = law.compute_optimal(5.76e23)
    assert tokens / parameters == pytest.approx(20, abs=6)  # "20 tokens per parameter", which their first fit missed
    assert law.beyond(70e9, 1.4e12)["parameters"] == pytest.approx(70e9 / chinchilla[0].max())
    assert law.spread(70e9, 1.4e12) < 1e-3 and law.spread(*chinchilla[:2]) < 1e-4  # these runs determine it


def test_the_bootstrap_covers_what_others_found(chinchilla) -> None:
    law = fit_law(*chinchilla, bootstrap=40, rng=np.random.default_rng(0))
    for name, value in {"E": 1.817, "alpha": 0.348, "beta": 0.366}.items():
        low, high = law.intervals[name]
        assert low < value < high
    low, high = law.band(70e9, 1.4e12)
    assert low < float(law.predict(70e9, 1.4e12)) < high and high - low < 0.1


def ladder(noise: float = 0.0, sparsity: float = 0.0) -> dict[str, np.ndarray]:
    """Runs of a known law; sparsity: exponent of the ratio of total to chosen experts in the parameter term."""
    rng = np.random.default_rng(1)
    n, d, s = np.meshgrid([1e6, 3e6, 1e7, 3e7], [2e7, 1e8, 5e8], [1.0, 4.0, 16.0], indexing="ij")
    loss = 1.5 + 50 * n**-0.25 * s**-sparsity + 800 * d**-0.35
    loss *= np.exp(rng.normal(0, noise, loss.shape))
    return {"parameters": n.ravel(), "tokens": d.ravel(), "loss": loss.ravel(), "sparsity": s.ravel()}


def test_a_planted_law_is_recovered() -> None:
    runs = ladder(sparsity=0.1)
    law = fit_law(**runs)
    assert (law.E, law.alpha, law.beta) == (
        pytest.approx(1.5, rel=0.01), pytest.approx(0.25, abs=0.005), pytest.approx(0.35, abs=0.005)
    )  # fmt: skip
    assert law.modifiers["sparsity"] == pytest.approx(0.1, abs=0.005)
    assert law.spread(7e9, 1e12, sparsity=8.0) < 1e-4
    assert law.predict(7e9, 1e12, sparsity=8.0) == pytest.approx(
        1.5 + 50 * 7e9**-0.25 * 8**-0.1 + 800 * 1e12**-0.35, rel=0.01
    )


def test_forms_are_judged_at_the_scale_that_was_held_out() -> None:
    (plain, with_it), without = (forms_of(ladder(noise=0.002, sparsity=power)) for power in (0.2, 0.0))
    assert with_it.modifiers == ("sparsity",) and plain.error > 3 * with_it.error
    assert abs(without[0].error - without[1].error) < 0.002


def forms_of(runs: dict[str, np.ndarray]) -> tuple[Form, ...]:
    """The forms of one family's law."""
    count = len(runs["loss"])
    return compare(Runs(np.full(count, "all"), **runs, granularity=np.ones(count), point=np.arange(count)))


def test_runs_of_two_sizes_do_not_determine_what_a_third_has() -> None:
    runs = ladder(noise=0.002)
    chosen = np.isin(runs["parameters"], (1e6, 1e7)) & (runs["sparsity"] == 1)
    few = {name: runs[name][chosen].repeat(2) for name in ("parameters", "tokens", "loss")}
    asked = {"parameters": np.array([3e7]), "tokens": np.array([1e8])}
    assert fit_law(**few, asked=asked).spread(**asked) > 0.01
    whole = {name: column[runs["sparsity"] == 1] for name, column in runs.items() if name in few}
    assert fit_law(**whole, asked=asked).spread(**asked) < 1e-4


def test_the_compute_optimum_is_one() -> None:
    plain = ScalingLaw(A=400, B=2000, E=1.8, alpha=0.3, beta=0.4)
    for law, at in ((plain, {}), (replace(plain, modifiers={"sparsity": 0.2}), {"sparsity": 8.0})):
        parameters, tokens = law.compute_optimal(1e21, **at)
        assert 6 * parameters * tokens == pytest.approx(1e21)
        best = float(law.predict(parameters, tokens, **at))
        for factor in (0.8, 1.25):
            assert law.predict(parameters * factor, tokens / factor, **at) > best


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {k: v[:6] for k, v in r.items()}, "6 runs are too few"),
        (lambda r: r | {"parameters": r["parameters"] ** 0.1}, "parameters differ by a factor of"),
        (lambda r: r | {"loss": -r["loss"]}, "loss has values that aren't positive"),
        (lambda r: r | {"sparsity": np.ones_like(r["loss"])}, "the same in all runs"),
        (lambda r: r | {"depth": r["loss"]}, "unknown modifier 'depth'"),
        (lambda r: r | {"tokens": r["tokens"][:3]}, "tokens has shape"),
    ],
)
def test_what_says_nothing_about_other_scales_is_refused(change, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit_law(**change(ladder()))


def test_a_prediction_asks_for_what_was_fitted() -> None:
    with pytest.raises(UserError, match="takes sparsity, not none"):
        fit_law(**ladder(sparsity=0.1)).predict(1e6, 1e8)
    with pytest.raises(UserError, match="bootstrap"):
        fit_law(**ladder()).band(1e6, 1e8, sparsity=1.0)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"A": 1e304, "alpha": 0.1, "beta": 0.1}, "above"),  # refits of terms that runs don't determine
        ({"B": 0.0}, "above"),
        ({"A": 0.0}, "below"),
        ({"alpha": -0.1}, "below"),
        ({"beta": -0.1}, "above"),
    ],
)
def test_where_the_law_has_no_optimum_it_is_an_end_and_a_number(changes: dict[str, float], where: str) -> None:
    law = ScalingLaw(**{"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.3, "beta": 0.4} | changes)
    parameters, tokens = law.compute_optimal(1e24)
    assert np.isfinite([parameters, tokens]).all()
    assert parameters > 1e100 if where == "above" else parameters < 1e-100
