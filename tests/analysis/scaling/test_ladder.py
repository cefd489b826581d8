"""A ladder's answer from records whose law is known; and what is said where there is none."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest

from analysis.figures.static import pictures
from analysis.report.files import as_csv, as_latex, as_markdown
from analysis.report.html import render
from analysis.scaling.extrapolation import judged_points, undetermined, weaknesses
from analysis.scaling.families import Runs, choose, compare, fit
from analysis.scaling.ladder import PLAIN, Ladder, fit_ladder, unfittable
from analysis.scaling.law import ScalingLaw
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.answer import Judgement
from analysis.verdicts.judge import judge
from analysis.verdicts.ladder import answer, distances, headline
from analysis.verdicts.ladder import tables as ladder_tables
from core.errors import UserError
from core.records.run_record import RunRecord
from tests.analysis.conftest import make_design, make_record
from tests.analysis.pages import on_terminal

FLOOR = 1.5
SIZES = (1e6, 2e6, 4e6, 8e6, 1.6e7)
BUDGETS = (2e15, 8e15, 3.2e16)
FAMILIES = {"dense": 1.0, "top-2 of 8": 4.0}  # and their sparsity


def loss_of(n: float, d: float, sparsity: float) -> float:
    return float(FLOOR + 40 * n**-0.3 * sparsity**-0.15 + 400 * d**-0.35)


def max_vio_of(n: float, d: float) -> float:
    return float(0.5 * (n / 1e6) ** 0.2 * (d / 1e8) ** -0.1)


def study_of(noise: float = 0.002, seeds: int = 1, **changes: Any) -> Study:
    """IsoFLOP points of both families, their losses from the planted law."""
    design = make_design(arms=1, seeds=seeds) | {"secondary": ["load/max_vio"], "factors": []}
    design["arms"] = []
    for family, sparsity in FAMILIES.items():
        for n in SIZES:
            for budget in BUDGETS:
                name = f"{family},{n:g},{budget:g}"
                tokens = budget / (7 * n)
                point = {"family": family, "tokens": tokens, "flops": budget, "budget": budget, "epochs": 0.5}
                point |= {"tokens_per_parameter": None, "sparsity": sparsity, "granularity": 1.0}
                design["arms"].append(
                    {"name": name, "label": name, "settings": {}, "hash": f"hash-{name}", "notes": [], "point": point,
                     "parameters": {"total": int(n * sparsity), "active": int(n)}, "flops_per_token": 7 * n}
                )  # fmt: skip
    target = {"parameters": 1.4e9, "tokens": 2e13, "sparsity": 8.0, "granularity": 1.0}
    design |= {"control": design["arms"][0]["name"], "ladder": {"targets": {"7B": target}}} | changes
    found = [record_of(design, arm, seed, noise) for arm in design["arms"] for seed in design["seeds"]]
    study = Study.of(found)
    assert study is not None
    return study


def record_of(design: dict[str, Any], arm: dict[str, Any], seed: int, noise: float) -> RunRecord:
    base, point = make_record(design, arm["name"], seed), arm["point"]
    place = [entry["name"] for entry in design["arms"]].index(arm["name"])
    rng = np.random.default_rng((seed, place))
    n, d = arm["parameters"]["active"], point["tokens"]
    loss = loss_of(n, d, point["sparsity"]) * np.exp(rng.normal(0, noise))
    metrics = {"val/nelbo": loss, "val/excess_nelbo": loss - FLOOR}
    if point["sparsity"] > 1:
        metrics |= {"load/max_vio": max_vio_of(n, d) * np.exp(rng.normal(0, 0.05)), "val/z_loss": 2.0}
    return replace(base, metrics=metrics)


@pytest.fixture(scope="module")
def judged() -> tuple[Study, Judgement, Ladder]:
    study = study_of()
    ladder = fit_ladder(study, bootstrap=40)  # 200 in a report
    return study, answer(study, ladder), ladder


def test_the_planted_law_is_found_with_what_sparsity_does(judged) -> None:
    ladder = judged[2]
    assert ladder.form.name == "one law with sparsity"
    forms = ["one law", "one law with sparsity", "a law each, one E", "a law each"]
    assert [form.name for form in ladder.forms] == forms
    values = ladder.coefficients[0].values
    for name, true in {"E": FLOOR, "alpha": 0.3, "beta": 0.35, "sparsity": 0.15}.items():
        assert values[name].low <= true <= values[name].high, name
        assert values[name].value == pytest.approx(true, rel=0.3)
    assert ladder.floor == pytest.approx(FLOOR) and ladder.weak == ()
    assert ladder.coefficients[0].residual < 0.004


def test_these_records_give_these_numbers(judged) -> None:
    ladder = judged[2]
    found = {name: entry.value for name, entry in ladder.coefficients[0].values.items()}
    golden = {"E": 1.515745, "A": 47.715661, "alpha": 0.315306, "B": 369.423686, "beta": 0.345184, "sparsity": 0.156485}
    assert found == pytest.approx(golden, rel=1e-3)
    one_law, *others = [form.error for form in ladder.forms]
    assert one_law is None and others == pytest.approx([0.001232, 0.002549, 0.003961], rel=1e-2)
    measured = [round(row.measured.parameters) if row.measured else None for row in ladder.optima]
    assert measured == [1479323, 2928286, 6011746, None, 2239376, 4187084]


def test_the_band_holds_the_truth_at_the_target_and_says_how_far_that_is(judged) -> None:
    ladder = judged[2]
    rows = {row.family: row for row in ladder.extrapolations}
    assert set(rows) == {"dense", "top-2 of 8", "sparsity 8"}
    for family, sparsity in (*FAMILIES.items(), ("sparsity 8", 8.0)):
        row = rows[family]
        assert row.loss.low <= loss_of(1.4e9, 2e13, sparsity) <= row.loss.high
        assert row.beyond["parameters"] == pytest.approx(1.4e9 / 1.6e7)
    assert rows["sparsity 8"].beyond["sparsity"] == 2.0
    assert distances(ladder)[0].startswith("7B at 20T tokens has 87.5 times the parameters and 4.38k times the tokens")


def test_minima_of_equal_compute_are_where_the_law_has_them(judged) -> None:
    ladder = judged[2]
    assert len(ladder.optima) == 6
    for row in ladder.optima:
        sparsity, grid = FAMILIES[row.family], np.geomspace(1e5, 1e8, 4000)
        true = grid[np.argmin([loss_of(n, row.flops / (7 * n), sparsity) for n in grid])]
        assert row.parameters.value == pytest.approx(true, rel=0.15)
        assert row.parameters.low <= row.parameters.value <= row.parameters.high
        assert row.measured is None or row.measured.parameters == pytest.approx(true, rel=0.6)
    assert sum(row.measured is not None for row in ladder.optima) >= 2


def test_routers_are_followed_with_scale(judged) -> None:
    health = {row.metric: row for row in judged[2].health}
    trend = health["load/max_vio"].trend
    assert trend.parameters.low <= 0.2 <= trend.parameters.high and trend.tokens.low <= -0.1 <= trend.tokens.high
    at = health["load/max_vio"].at["7B"]
    assert at.low <= max_vio_of(1.4e9, 2e13) <= at.high and health["load/max_vio"].bound == 3.0
    assert health["val/z_loss"].trend.parameters.value == pytest.approx(0, abs=1e-9)


def test_page_terminal_json_and_files_say_the_same(judged) -> None:
    study, judgement, ladder = judged
    html = unescape(render(study, judgement))
    assert html.count("<svg") == 3 and headline(ladder) in html and "Verdict" not in html
    shown = on_terminal(judgement, 100)
    content = json.loads(json.dumps(judgement.to_dict(), allow_nan=False))
    for table in tables_on(judgement.tables, "file"):
        assert as_csv(table).count("\n") == 1 + len(table.exact) and as_latex(table) and as_markdown(table)
        assert all(len(row) == len(table.head("file")) for row in table.shown("file"))
        if table.name != "points":
            assert table.title in html and table.title in shown
    assert content["ladder"]["form"]["name"] == "one law with sparsity" and "laws" not in content["ladder"]
    names = [table.name for table in tables_on(judgement.tables, "file")]
    assert names == ["law", "forms", "isoflop", "extrapolation", "health", "points"]
    assert list(pictures(judgement.figures)) == ["compute", "isoflop", "health"]


def test_too_little_is_said_in_a_line() -> None:
    whole = study_of()
    small = [arm for arm in whole.design.to_json()["arms"] if arm["parameters"]["active"] <= 2e6]
    study = study_of(arms=small, control=small[0]["name"])
    ladder = fit_ladder(study)
    assert ladder.laws == {} and ladder.extrapolations == () and ladder.optima == ()
    assert "parameters differ by a factor of 2" in headline(ladder) and "at least 4" in unfittable(study.design)
    assert unfittable(whole.design) == ""
    judgement = judge(study)
    assert "No law can be fitted" in render(study, judgement) and judgement.winner is None
    assert any("MaxVio of top-2 of 8: no trend: 6 points are too few" in note for note in ladder.notes)


def test_nothing_finished_is_no_error() -> None:
    study = study_of()
    failed = {key: replace(record, status="failed", metrics={}) for key, record in study.cells.items()}
    study = replace(study, cells=failed)
    judgement = judge(study)
    assert "No law can be fitted" in judgement.headline
    assert "30 runs failed" in " ".join(judgement.found["ladder"].notes)
    assert "No law" in render(study, judgement)
    assert "0 of 30 runs" in judge(study, brief=True).headline


def test_a_term_that_rises_is_no_law() -> None:
    law = ScalingLaw(A=0.01, B=400, E=1.5, alpha=-0.2, beta=0.35, residual=0.001)
    n, d = (column.ravel() for column in np.meshgrid([1e6, 4e6, 1.6e7], [2e7, 1e8, 5e8]))
    ones, loss = np.ones(len(n)), law.predict(n, d)
    runs = Runs(np.full(len(n), "dense"), n, d, loss, ones, ones, np.arange(len(n)))
    assert weaknesses({"dense": law}, runs) == ["the term in N doesn't fall (its exponent is -0.2), as a law's does"]
    assert weaknesses({"dense": replace(law, A=40, alpha=0.3)}, runs) == []


def test_runs_that_say_nothing_of_a_term_are_not_extrapolated() -> None:
    ladder = fit_ladder(study_of(noise=0.05), bootstrap=2)  # about as much scatter as N changes the loss by
    assert ladder.weak and ladder.extrapolations == () and all(row.parameters is None for row in ladder.optima)
    assert "don't determine the law, so nothing is extrapolated" in headline(ladder)
    assert "say nothing" in ladder.weak[0]


def with_losses(study: Study, losses: Any) -> Study:
    """The study with other losses. losses: of N, D and the arm's place."""
    arms = {arm["name"]: (place, arm) for place, arm in enumerate(study.design.to_json()["arms"])}
    found = {}
    for key, record in study.cells.items():
        place, arm = arms[key[0]]
        loss = losses(arm["parameters"]["active"], arm["point"]["tokens"], place)
        found[key] = replace(record, metrics=record.metrics | {"val/nelbo": loss})
    return replace(study, cells=found)


def test_a_form_that_the_runs_do_not_determine_is_named_and_not_kept(judged) -> None:
    ladder = judged[2]
    one_law, *others = ladder.forms
    assert one_law.error is None and one_law.spread > 0.01 and all(form.spread < 1e-4 for form in others)
    forms = next(table for table in ladder_tables(ladder) if table.name == "forms")
    assert tuple(forms.rows[0]) == ("one law", "5", "not determined", "") and "can't be kept" in forms.intro
    with pytest.raises(UserError, match="determine none of the forms"):
        choose([one_law, replace(one_law, name="another")])


def test_a_law_that_the_runs_do_not_determine_is_none() -> None:
    ladder = fit_ladder(with_losses(study_of(), lambda n, d, place: 3 + 0.2 * (place % 2)), bootstrap=2)
    assert not ladder.laws and ladder.coefficients == () and ladder.extrapolations == ()
    why = "without the largest models, these runs determine none of the forms"
    assert f"No law can be fitted yet: {why}." in headline(ladder)


def test_equally_good_fits_that_differ_at_a_target_are_no_law() -> None:
    n, d = (column.ravel() for column in np.meshgrid([1e6, 4e6], [2e7, 1e8, 5e8, 2.5e9]))
    loss = np.array([loss_of(*run, 1.0) for run in zip(n, d, strict=True)])  # two sizes: E, A and alpha trade
    runs = Runs(np.full(len(n), "dense"), n, d, loss, np.ones(len(n)), np.ones(len(n)), np.arange(len(n)))
    targets = {"7B": {"parameters": 7e9, "tokens": 2e12, "sparsity": 1.0, "granularity": 1.0}}
    laws = fit(runs, PLAIN, asked=judged_points(runs, targets))
    assert undetermined(laws, runs, {}) == "" and undetermined(laws, runs, targets) == "over 1.0% at 7B"


def test_a_term_that_is_not_there_is_said_to_be_none_however_small_the_scatter() -> None:
    ladder = fit_ladder(with_losses(study_of(), lambda n, d, place: FLOOR + 40 * n**-0.3), bootstrap=2)
    assert ladder.weak == (
        "the term in D changes the loss by 0.0% above the smallest D, and the scatter is 0.0%: its coefficients say nothing",
    )


def test_a_law_is_fitted_where_its_only_form_could_not_be_judged() -> None:
    whole = study_of()
    arms = [arm for arm in whole.design.to_json()["arms"] if arm["point"]["family"] == "dense"]
    few = [arm for arm in arms if arm["parameters"]["active"] in (1e6, 4e6, 1.6e7)]
    for arm in list(few):
        name, point = f"{arm['name']},twice", arm["point"]
        few.append(arm | {"name": name, "hash": f"hash-{name}", "point": point | {"tokens": 2 * point["tokens"]}})
    ladder = fit_ladder(study_of(arms=few, control=few[0]["name"]), bootstrap=2)
    assert [form.error for form in ladder.forms] == [None] and ladder.forms[0].spread > 0.01  # two sizes are left
    assert pytest.approx(FLOOR, rel=0.05) == ladder.laws["dense"].E and ladder.weak == ()
    assert "the only form couldn't be judged" in ladder.notes[0]


def shaken(study: Study, seed: int, size: float) -> Study:
    """The study with every number off by up to that share: what another processor's rounding does, and more."""
    rng = np.random.default_rng(seed)
    cells = {key: replace(record, metrics={name: value * (1 + size * rng.uniform(-1, 1))
                                           for name, value in record.metrics.items()})
             for key, record in study.cells.items()}  # fmt: skip
    return replace(study, cells=cells)


def said(study: Study) -> str:
    """All words and numbers of a ladder's page."""
    ladder = fit_ladder(study, bootstrap=20)
    shown = tables_on(ladder_tables(ladder), "file")
    return "\n".join([headline(ladder), *ladder.notes, *map(as_markdown, shown)])


@pytest.fixture(scope="module")
def page() -> str:
    return said(study_of())


def test_a_page_says_the_same_whatever_the_last_digits(page: str) -> None:
    assert said(shaken(study_of(), 0, 1e-10)) == page


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01, 0.05])
@pytest.mark.parametrize("families", [("dense",), tuple(FAMILIES)])
def test_pages_say_the_same_after_shakes_of_several_sizes(noise: float, families: tuple[str, ...]) -> None:
    whole = study_of(noise=noise)
    arms = [arm for arm in whole.design.to_json()["arms"] if arm["point"]["family"] in families]
    study = study_of(noise=noise, arms=arms, control=arms[0]["name"])
    wanted = said(study)
    for seed, size in enumerate((1e-13, 1e-11, 1e-10)):
        assert said(shaken(study, seed, size)) == wanted


@pytest.mark.parametrize("threads", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_page_says_the_same_with_any_number_of_threads(page: str, threads: str) -> None:
    asked = "from tests.analysis.scaling.test_ladder import said, study_of; print(said(study_of()))"
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    found = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == page + "\n" and "one law with sparsity" in page


def test_the_order_of_runs_changes_nothing() -> None:
    rng, n, d, s = np.random.default_rng(0), *np.meshgrid(SIZES, [2e7, 1e8, 5e8], [1.0, 4.0])
    n, d, s = n.ravel(), d.ravel(), s.ravel()
    loss = np.array([loss_of(*run) for run in zip(n, d, s, strict=True)]) * np.exp(rng.normal(0, 0.005, len(n)))
    runs = Runs(np.where(s > 1, "sparse", "dense"), n, d, loss, s, np.ones(len(n)), np.arange(len(n)))
    order = np.r_[0, 1 + rng.permutation(len(n) - 1)]
    forms, others = compare(runs), compare(runs.where(order))
    wanted = [form.error if form.error is None else pytest.approx(form.error, rel=1e-6) for form in forms]
    assert [form.error for form in others] == wanted
    assert choose(others).name == choose(forms).name
