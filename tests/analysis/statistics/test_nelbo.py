"""The bound of one sequence: exact conditionals give -log p(x), strata help, common masks help more."""

import itertools

import numpy as np
import pytest

from analysis.statistics.nelbo import MASK, difference, estimate
from core.errors import UserError

LENGTH, LETTERS = 6, 3
rng_of = np.random.default_rng


def chain(sharpness: float) -> np.ndarray:
    """log p of every sequence of a Markov chain. Returns (letters,) * length."""
    rng = rng_of(0)
    start = rng.dirichlet(np.ones(LETTERS))
    step = rng.dirichlet(np.ones(LETTERS) / sharpness, LETTERS)
    out = np.empty((LETTERS,) * LENGTH)
    for x in itertools.product(range(LETTERS), repeat=LENGTH):
        out[x] = np.log(start[x[0]]) + sum(np.log(step[a, b]) for a, b in itertools.pairwise(x))
    return out


def posterior(log_p: np.ndarray, x: np.ndarray, blur: float = 0.0):
    """The exact p(x_i | what is visible) by enumeration, mixed with a uniform one."""
    p = np.exp(log_p)

    def log_prob(tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        out = np.zeros(masked.shape)
        for row, (seen, hidden) in enumerate(zip(tokens, masked, strict=True)):
            assert (seen[hidden] == MASK).all() and (seen[~hidden] == x[~hidden]).all()
            given = p[tuple(slice(None) if h else t for t, h in zip(seen, hidden, strict=True))]
            for axis, place in enumerate(np.flatnonzero(hidden)):
                others = tuple(a for a in range(given.ndim) if a != axis)
                share = given.sum(axis=others)[x[place]] / given.sum()
                out[row, place] = np.log((1 - blur) * share + blur / LETTERS)
        return out

    return log_prob


X = np.array([0, 2, 1, 1, 0, 2])


def test_exact_conditionals_give_the_log_likelihood() -> None:
    log_p = chain(0.5)
    found = estimate(posterior(log_p, X), X, 600, rng_of(1))
    assert abs(found.value + log_p[tuple(X)]) < 3 * found.standard_error
    assert found.standard_error < 0.05 * found.value


def test_the_standard_error_is_honest() -> None:
    log_prob = posterior(chain(0.5), X)
    found = [estimate(log_prob, X, 24, rng_of(s)) for s in range(200)]
    spread = np.std([each.value for each in found])
    assert spread < 1.1 * np.mean([each.standard_error for each in found]) < 1.6 * spread


def test_strata_take_variance_and_common_masks_more() -> None:
    log_p = chain(0.5)
    exact, blurred = posterior(log_p, X), posterior(log_p, X, blur=0.05)
    alone = [
        estimate(blurred, X, 24, rng_of(s)).value - estimate(exact, X, 24, rng_of(500 + s)).value for s in range(80)
    ]
    paired = [difference(exact, blurred, X, 24, rng_of(s)).value for s in range(80)]
    assert np.std(paired) < 0.5 * np.std(alone)
    assert np.mean(paired) == pytest.approx(np.mean(alone), abs=4 * np.std(alone) / 80**0.5)


def test_a_uniform_denoiser_costs_log_of_the_letters_whatever_the_masks() -> None:
    found = estimate(lambda tokens, masked: np.where(masked, -np.log(3), 0.0), X, 5, rng_of(0))
    assert found.value == pytest.approx(6 * np.log(3)) and found.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "n", "log_prob", "said"),
    [
        (X, 1, None, "at least 2 masks"),
        (X[None], 4, None, "one sequence"),
        (X, 4, lambda t, m: np.ones(m.shape), "no log-probabilities"),
        (X, 4, lambda t, m: np.zeros(3), "gave shape"),
    ],
)
def test_bad_input_is_refused(x, n: int, log_prob, said: str) -> None:
    with pytest.raises(UserError, match=said):
        estimate(log_prob, x, n, rng_of(0))
