import math

import numpy as np
import pytest

from core.data.synthetic import MarkovSource
from core.probes.text_quality import NgramJudge, distinct, entropy, longest_copied_span


def test_distinct_counts_over_all_samples() -> None:
    assert distinct([np.arange(10), np.arange(10)]) == 0.5 and distinct([np.arange(10), np.arange(10, 20)]) == 1
    assert distinct([np.zeros(103, dtype=int)]) == 0.01 and distinct([np.arange(3)]) == 0


def test_entropy_is_of_the_samples_own_tokens() -> None:
    assert entropy(np.array([1, 2, 3, 4] * 5)) == pytest.approx(math.log(4))
    assert entropy(np.zeros(9)) == 0 and entropy(np.zeros(0)) == 0


def test_the_longest_copied_span_is_the_longest_common_run() -> None:
    rng = np.random.default_rng(0)
    train_T, sample_L = rng.integers(3, size=300), rng.integers(3, size=40)

    def runs(length):
        return {tuple(train_T[i : i + length]) for i in range(len(train_T) - length + 1)}

    expected = max(
        length
        for length in range(1, 41)
        if any(tuple(sample_L[i : i + length]) in runs(length) for i in range(41 - length))
    )
    assert longest_copied_span(sample_L, train_T) == expected
    assert longest_copied_span(train_T[50:90].astype(np.uint16), train_T.astype(np.uint16)) == 40
    assert longest_copied_span(np.array([256]), np.array([1, 0])) == 0  # its bytes are there, between two tokens


def test_the_judges_probabilities_are_a_distribution() -> None:
    judge = NgramJudge.of(np.random.default_rng(1).integers(4, size=60), 5, order=3)
    for before in ([0, 1], [3, 3], [4, 4], [2]):

        def total(*tokens: int) -> float:
            return -judge.cross_entropy(np.array(tokens)) * len(tokens)

        assert sum(math.exp(total(*before, token) - total(*before)) for token in range(5)) == pytest.approx(1)


def test_the_judge_comes_to_a_chains_entropy_and_worse_text_is_judged_worse() -> None:
    rng = np.random.default_rng(2)
    source = MarkovSource.random(rng, states=6)
    judge = NgramJudge.of(source.sample(1, 20_000, rng)[0], 6, order=2)
    sample_L = source.sample(1, 5_000, rng)[0]
    assert judge.cross_entropy(sample_L) == pytest.approx(source.entropy_per_token(5_000), abs=0.05)
    assert judge.cross_entropy(rng.permutation(sample_L)) > judge.cross_entropy(sample_L) + 0.2
    with pytest.raises(ValueError, match="no room in 64 bits"):
        NgramJudge.of(sample_L, 200_000, order=4)
