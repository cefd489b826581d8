"""Tests and estimates on made-up sequences whose tokens are alike: where there is nothing to find, and where there is."""

import math

import numpy as np
import pytest

from analysis.routing.profile import (
    RESAMPLES,
    crossed_counts,
    crossed_profile,
    paired_change,
    plain_counts,
    plain_profile,
)
from analysis.routing.resampling import crossed_nulls, plain_null, pvalues, signs, step_down
from analysis.statistics.information import crossed_tables, jackknife, mutual_information, plain_tables
from core.errors import UserError

BINS, EXPERTS, LENGTH, TOP = 8, 8, 64, 2
REPEATS = 400
ERROR = 3 * math.sqrt(0.05 * 0.95 / REPEATS)  # three standard errors of a size of 0.05


def timestep_dependence_test(counts_GMK, tbin_G, *, rng, resamples: int = RESAMPLES) -> float:
    """p-value of one layer in the plain design."""
    counts, bins = plain_counts(counts_GMK[None], tbin_G)
    return float(pvalues(plain_null(counts, bins, signs(len(bins), resamples, rng)))[0])


def crossed_dependence_test(counts_GTMK, *, rng, resamples: int = RESAMPLES) -> float:
    """p-value of one layer in the crossed design."""
    return float(max(pvalues(drawn)[0] for drawn in crossed_nulls(crossed_counts(counts_GTMK[None]), rng, resamples)))


def conditional_mutual_information(counts_GMK, tbin_G) -> tuple[float, float]:
    """Information and its standard error of one layer in the plain design."""
    counts, bins = plain_counts(counts_GMK[None], tbin_G)
    found = jackknife(mutual_information, *plain_tables(counts[0], bins))
    return float(found.value), float(found.standard_error)


def crossed_mutual_information(counts_GTMK) -> tuple[float, float]:
    """The same of one layer in the crossed design."""
    found = jackknife(mutual_information, *crossed_tables(crossed_counts(counts_GTMK[None])[0]))
    return float(found.value), float(found.standard_error)


def plain(
    rng: np.random.Generator,
    repeats: int,
    *,
    sequences: int = 128,
    experts: int = EXPERTS,
    alike: float = 8.0,
    effect: float = 0.0,
    length: int = LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Dirichlet-multinomial sequences, each at one timestep that says how many of its tokens are masked: (R, G, 2, K), bins.

    Each masked status of a repeat has expert shares of its own. effect: of the timestep on the shares' logits.
    """
    bins = np.arange(sequences) % BINS
    t = (bins + 0.5) / BINS
    masked_RG = rng.binomial(length, t, (repeats, sequences))
    base_RMK = np.log(rng.dirichlet(np.full(experts, 2.0), (repeats, 2)))
    logits = base_RMK[:, None] + effect * (t[:, None, None] - 0.5) * np.linspace(-1, 1, experts)
    own = rng.gamma(alike * _softmax(logits)) + 1e-12
    tokens_RGM = np.stack([length - masked_RG, masked_RG], -1)
    return rng.multinomial(TOP * tokens_RGM, own / own.sum(-1, keepdims=True)), bins


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def rejected(pvalue: np.ndarray) -> float:
    return float(np.mean(np.asarray(pvalue) <= 0.05))


def crossed(
    rng: np.random.Generator, repeats: int, *, slope: float = 0.0, effect: float = 0.0, tokens: int = 8
) -> np.ndarray:
    """The same few tokens of each sequence at all timesteps: (R, G, T, 2, K).

    slope: of each sequence's own drift over timesteps, which is as often up as down; effect: of the one that all share.
    """
    t = (np.arange(BINS) + 0.5) / BINS - 0.5
    base = np.log(rng.dirichlet(np.full(EXPERTS, 2.0), (repeats, 128, 1, 2)))
    drift = effect * np.linspace(-1, 1, EXPERTS) + slope * rng.normal(size=(repeats, 128, 1, 2, EXPERTS))
    return rng.multinomial(TOP * tokens, _softmax(base + t[:, None, None] * drift))


def plain_pvalues(counts_RGMK: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of each repeat, as `timestep_dependence_test` gives it; the same signs for a hundred repeats."""
    return np.concatenate(
        [pvalues(plain_null(part, bins, signs(len(bins), 99, rng))) for part in np.split(counts_RGMK.astype(float), 8)]
    )


@pytest.mark.parametrize("alike", [2.0, 30.0])
def test_plain_size_holds_whatever_tokens_of_a_sequence_have_in_common(alike: float) -> None:
    rng = np.random.default_rng(11)
    assert 0.01 < rejected(plain_pvalues(*plain(rng, REPEATS, alike=alike), rng)) < 0.05 + ERROR


def test_plain_size_holds_for_rare_experts_and_few_tokens_and_missing_statuses() -> None:
    """A hundred sequences of 6 tokens among 32 experts: many have no token of a status, many experts are hardly met."""
    rng = np.random.default_rng(12)
    counts, bins = plain(rng, REPEATS, sequences=100, experts=32, length=6, alike=4.0)
    assert (counts.sum(-1) == 0).any(1).all()
    assert 0.01 < rejected(plain_pvalues(counts, bins, rng)) < 0.05 + ERROR


def test_the_test_is_what_was_simulated() -> None:
    rng, other = np.random.default_rng(13), np.random.default_rng(13)
    counts, bins = plain(np.random.default_rng(1), 1, effect=1.0)
    drawn = plain_null(counts.astype(float), bins, signs(128, 99, other))
    assert timestep_dependence_test(counts[0], bins, rng=rng, resamples=99) == pvalues(drawn)[0]
    counts = crossed(np.random.default_rng(1), 1, effect=0.1)
    nulls = crossed_nulls(counts.astype(float), other, 99)
    assert crossed_dependence_test(counts[0], rng=rng, resamples=99) == max(pvalues(null)[0] for null in nulls)


def test_tokens_that_are_taken_for_independent_find_anything() -> None:
    """What the tests above would see of a chi-square test over tokens."""
    from scipy.stats import chi2_contingency

    counts, bins = plain(np.random.default_rng(13), 20, alike=2.0)
    tables = [plain_tables(repeat, bins)[0][1] for repeat in counts]
    found = [chi2_contingency(table[:, table.sum(0) > 0]).pvalue for table in tables]
    assert rejected(np.array(found)) > 0.95


def test_crossed_size_holds() -> None:
    rng = np.random.default_rng(14)
    signed, permuted = crossed_nulls(crossed(rng, REPEATS).astype(float), rng, 99)
    assert 0.01 < rejected(np.maximum(pvalues(signed), pvalues(permuted))) < 0.05 + ERROR


def test_crossed_size_holds_where_neighbouring_timesteps_are_alike() -> None:
    """Sequences that drift each their own way: permuting timesteps alone finds a dependence that isn't there."""
    rng = np.random.default_rng(15)
    counts = crossed(rng, REPEATS, slope=2.0, tokens=16).astype(float)
    signed, permuted = map(pvalues, crossed_nulls(counts, rng, 99))
    assert rejected(permuted) > 0.05 + ERROR
    assert 0.01 < rejected(np.maximum(signed, permuted)) < 0.05 + ERROR


def test_a_planted_effect_is_found_by_both_designs() -> None:
    rng = np.random.default_rng(16)
    assert rejected(plain_pvalues(*plain(rng, 40, effect=2.0), rng)) > 0.9
    signed, permuted = crossed_nulls(crossed(rng, 40, effect=0.5).astype(float), rng, 99)
    assert rejected(np.maximum(pvalues(signed), pvalues(permuted))) > 0.9


def test_the_jackknife_is_unbiased_where_the_plug_in_is_not() -> None:
    counts, bins = plain(np.random.default_rng(17), REPEATS)
    plug_in = [mutual_information(plain_tables(repeat, bins)[0]) for repeat in counts]
    value, error = np.transpose([conditional_mutual_information(repeat, bins) for repeat in counts])
    assert np.mean(plug_in) > 0.02
    assert abs(value.mean()) < 0.0015
    assert 1 < error.mean() / value.std() < 2  # without a dependence it is on the safe side


def test_the_crossed_jackknife_is_unbiased_too() -> None:
    counts = crossed(np.random.default_rng(17), REPEATS // 2, tokens=2)
    plug_in = [mutual_information(repeat.sum(0).swapaxes(0, 1)) for repeat in counts]
    value = [crossed_mutual_information(repeat)[0] for repeat in counts]
    assert np.mean(plug_in) > 0.005 and abs(np.mean(value)) < 0.0002


def test_information_is_that_of_the_enumerated_distribution() -> None:
    """Every sequence exactly as expected: at even bins expert 0 alone, at odd ones either of two."""
    bins = np.arange(400) % 2
    counts = np.zeros((400, 2, 2))
    counts[bins == 0] = [[40, 0], [40, 0]]
    counts[bins == 1] = [[20, 20], [20, 20]]
    exact = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - math.log(2) / 2
    value, error = conditional_mutual_information(counts, bins)
    assert value == pytest.approx(exact, abs=1e-3) and 0 <= error < 1e-2
    across = np.stack([counts[bins == 0], counts[bins == 1]], 1)
    assert crossed_mutual_information(across) == pytest.approx((exact, 0), abs=1e-9)


def test_experts_that_never_change_are_no_dependence_whatever_rounding_does() -> None:
    rng = np.random.default_rng(18)
    counts = np.repeat(rng.integers(0, 7, (128, 1, 2, EXPERTS)), 8, axis=1)
    assert crossed_dependence_test(counts, rng=rng) == 1
    assert crossed_dependence_test(counts[:, :, 0], rng=rng) == 1  # one status alone
    profile = crossed_profile(np.stack([counts, counts]), rng=rng)
    assert profile.pvalue_S.tolist() == profile.adjusted_S.tolist() == [1, 1]
    np.testing.assert_allclose(profile.nats_S, 0, atol=1e-9)
    same = np.tile([[1.0, 2, 3], [4, 5, 7]], (128, 1, 1))
    assert timestep_dependence_test(same, np.arange(128) % 8, rng=rng) == 1


def test_a_p_value_counts_what_was_seen_and_depends_on_the_generator_alone() -> None:
    (counts,), bins = plain(np.random.default_rng(19), 1, effect=6.0)
    first, again = (timestep_dependence_test(counts, bins, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == again == 1 / 1000
    order = np.random.default_rng(4).permutation(128)  # neither the order of sequences nor the bins' names matter
    estimate = conditional_mutual_information(counts, bins)
    assert conditional_mutual_information(counts[order], 7 - 3 * bins[order]) == pytest.approx(estimate)


def test_a_profile_finds_the_layer_and_adjusts_for_the_others() -> None:
    rng = np.random.default_rng(20)
    layers, bins = plain(rng, 4)
    layers[1] = plain(rng, 1, effect=3.0)[0][0]
    profile = plain_profile(layers, bins, rng=rng)
    assert (profile.adjusted_S >= profile.pvalue_S).all()
    assert (profile.adjusted_S < 0.05).tolist() == [False, True, False, False]
    assert (profile.low_S < profile.nats_S).all() and (profile.nats_S < profile.high_S).all()
    wide = (profile.high_S - profile.low_S) / 2 / profile.error_S  # of four layers at once, not of one
    assert (wide > 2.1).all() and (wide < 3.5).all()
    single = conditional_mutual_information(layers[1], bins)
    assert (profile.nats_S[1], profile.error_S[1]) == pytest.approx(single)
    assert profile.share_S[1] == pytest.approx(profile.nats_S.max() / math.log(EXPERTS), rel=0.5)
    assert profile.divergence_SM.shape == (4, 2) and profile.divergence_SM[1].min() > 0.01


def test_the_family_of_layers_keeps_its_error_rate() -> None:
    rng = np.random.default_rng(21)
    layers, bins = plain(rng, 4 * REPEATS)
    drawn = [plain_null(part, bins, signs(len(bins), 99, rng)) for part in np.split(layers.astype(float), 16)]
    families = [part[:, i : i + 4] for part in drawn for i in range(0, part.shape[1], 4)]
    assert rejected(np.array([step_down(family).min() for family in families])) < 0.05 + ERROR
    assert rejected(np.array([pvalues(family).min() for family in families])) > 0.1  # as it is without adjusting


def test_bands_cover_all_layers_at_once_where_there_is_a_dependence() -> None:
    rng, length = np.random.default_rng(22), 32
    shares = np.array(
        [[[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], [[0.3, 0.3, 0.4], [0.1, 0.6, 0.3]], [[0.5, 0.4, 0.1], [0.4, 0.1, 0.5]]]
    )
    bins, covered = np.arange(120) % 2, []
    true = [mutual_information(np.stack([layer, layer])) for layer in shares]
    for _ in range(REPEATS // 2):
        own = rng.gamma(10 * shares[:, bins][:, :, None].repeat(2, 2))
        counts = rng.multinomial(length, own / own.sum(-1, keepdims=True))
        profile = plain_profile(counts, bins, rng=rng, resamples=199)
        covered.append(((profile.low_S <= true) & (true <= profile.high_S)).all())
    assert np.mean(covered) > 0.95 - ERROR * math.sqrt(2)


def test_a_change_is_paired_within_sequences() -> None:
    rng = np.random.default_rng(23)
    before = rng.normal(size=(100, 8)) * 5
    after = before + 0.01 * np.linspace(0, 2, 100)[:, None]
    change = paired_change(before, after)
    assert change.mean == pytest.approx(0.01) and change.low < 0.01 < change.high and change.pvalue < 1e-6
    assert change.standard_error == pytest.approx(0.01 * np.linspace(0, 2, 100).std(ddof=1) / 10)
    assert paired_change(before, before).mean == 0 and paired_change(before, before).pvalue == 1


GOOD, GOOD_BINS = np.ones((100, 2, 3)), np.arange(100) % 4


@pytest.mark.parametrize(
    ("counts", "bins", "expected"),
    [
        (GOOD[:99], GOOD_BINS[:99], "99 sequences are too few.*at least 100"),
        (GOOD, GOOD_BINS * 0, "at least 2 timestep bins"),
        (GOOD, np.where(np.arange(100) == 5, 9, GOOD_BINS), "bin 9 has 1 sequence"),
        (GOOD, GOOD_BINS[:50], r"shape \(100,\)"),
        (GOOD, GOOD_BINS + 0.5, "whole numbers"),
        (GOOD, np.where(np.arange(100) == 5, np.nan, GOOD_BINS), "whole numbers"),
        (GOOD[:, :1], GOOD_BINS, "visible before masked"),
        (GOOD[0], GOOD_BINS, "at least one layer"),
        (-GOOD, GOOD_BINS, "not negative"),
        (GOOD * np.nan, GOOD_BINS, "finite"),
        (GOOD * np.inf, GOOD_BINS, "finite"),
        (GOOD * 0, GOOD_BINS, "no token was counted"),
        (GOOD[:, :, :0], GOOD_BINS, "not empty"),
        (GOOD.astype(str).astype(object) + "x", GOOD_BINS, "numbers"),
    ],
)
def test_what_cannot_tell_is_refused(counts, bins, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plain_profile(counts[None], bins, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (np.ones((99, 4, 2, 3)), "99 sequences are too few"),
        (np.ones((100, 1, 2, 3)), "at least 2 timesteps"),
        (np.ones((100, 4)), "shape"),
        (-np.ones((100, 4, 3)), "not negative"),
    ],
)
def test_what_cannot_tell_is_refused_across_timesteps_too(counts, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        crossed_dependence_test(counts, rng=np.random.default_rng(0))
