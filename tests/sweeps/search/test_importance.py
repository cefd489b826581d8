"""Importance beside that of shuffled values: a parameter that matters is found, and the others are not."""

from dataclasses import replace

import numpy as np
import pytest

from sweeps.search.importance import importances
from sweeps.search.spec import Choice, Log, Uniform
from tests.sweeps.search.conftest import RATE, ROUTER, WEIGHT, declare

UPDATE = "model.router.bias_update_rate"
SEARCH = declare(
    sampler="random",
    space={
        RATE: Log(1e-4, 1e-1),
        WEIGHT: Log(1e-4, 1.0, zero=True),
        ROUTER: Choice(("topk", "bias_balanced")),
        UPDATE: Log(1e-4, 1e-1, when={ROUTER: ("bias_balanced",)}),
        "data.variable_length_share": Uniform(0, 1),
    },
)


def points(rng, count):
    for _ in range(count):
        router = str(rng.choice(["topk", "bias_balanced"]))
        point = {RATE: float(10 ** rng.uniform(-4, -1)), ROUTER: router}
        point[WEIGHT] = 0.0 if rng.random() < 0.3 else float(10 ** rng.uniform(-4, 0))
        point["data.variable_length_share"] = float(rng.uniform())
        if router == "bias_balanced":
            point[UPDATE] = float(10 ** rng.uniform(-4, -1))
        yield point


def test_what_matters_is_found() -> None:
    rng = np.random.default_rng(0)
    drawn = list(points(rng, 60))
    losses = [(np.log10(p[RATE]) + 2.5) ** 2 + 0.1 * rng.normal() for p in drawn]
    rows = importances(SEARCH, drawn, losses, rng=rng, shuffles=100)
    assert rows[0].parameter == RATE and rows[0].importance > rows[0].null and rows[0].pvalue < 0.02
    others = {WEIGHT, f"{WEIGHT} = 0", ROUTER, UPDATE, "data.variable_length_share"}
    assert {row.parameter for row in rows} == {RATE, *others}
    assert sum(row.pvalue < 0.05 for row in rows[1:]) <= 1


def test_a_null_is_rejected_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(1)
    small = []
    for _ in range(12):
        drawn = list(points(rng, 30))
        small += [row.pvalue <= 0.05 for row in importances(SEARCH, drawn, rng.normal(size=30), rng=rng, shuffles=40)]
    assert np.mean(small) < 0.12  # 72 of them, not all independent


@pytest.mark.parametrize("sampler", ["tpe", "cma_es", "nsga2"])
def test_after_a_guided_search_importances_have_no_null(sampler: str) -> None:
    rng = np.random.default_rng(0)
    drawn = list(points(rng, 30))
    losses = [(np.log10(p[RATE]) + 2.5) ** 2 + 0.1 * rng.normal() for p in drawn]
    rows = importances(replace(SEARCH, sampler=sampler), drawn, losses, rng=rng, shuffles=100)
    alone = importances(replace(SEARCH, sampler="qmc"), drawn, losses, rng=rng, shuffles=10)
    assert {row.parameter: row.importance for row in rows} == {row.parameter: row.importance for row in alone}
    assert rows[0].parameter == RATE and [row.importance for row in rows] == sorted(
        (r.importance for r in rows), reverse=True
    )
    assert all(row.null is None and row.pvalue is None for row in rows) and all(row.pvalue is not None for row in alone)


def test_too_few_points_say_nothing() -> None:
    drawn = list(points(np.random.default_rng(2), 9))
    assert importances(SEARCH, drawn, range(9), rng=np.random.default_rng(0)) == []
