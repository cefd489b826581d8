"""Does expert choice depend on the timestep? Tests, sizes and profiles over layers, from counts of expert assignments.

Two designs. In the plain one each sequence is seen at one timestep. In the crossed one it is seen at all of them, under
nested masks, and only the tokens count whose masked status is the same at all: token, position and status are held fixed.

The unit is the sequence: its tokens are alike. Masked status is held fixed, because a mask is routed unlike a token and the
timestep says how many there are. Shapes: S layers, G sequences, T timesteps, M = 2 masked statuses (visible, masked), K
experts, R resamples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.routing.resampling import band, crossed_nulls, plain_null, pvalues, signs, step_down
from analysis.statistics.information import (
    Jackknifed,
    crossed_tables,
    dependent_share,
    jackknife,
    jensen_shannon,
    mutual_information,
    plain_tables,
)
from core.errors import UserError

SEQUENCES = 100  # fewer, and sign flips and the jackknife no longer hold what they promise
RESAMPLES = 999


@dataclass(frozen=True)
class RoutingProfile:
    """Each layer's dependence of the expert on the timestep given masked status, in one design. Arrays over S layers.

    nats_S, error_S: I(E; T | M), jackknifed (so that it may be a little negative), and its standard error. low_S, high_S:
    bands that hold for all layers at once where there is a dependence. share_S, share_error_S: of H(E | M).
    divergence_SM, divergence_error_SM: Jensen-Shannon divergence between timesteps in nats, of visible and of masked
    tokens, jackknifed. pvalue_S; adjusted_S: for having looked at S layers (step-down max-T, Westfall & Young 1993).
    """

    nats_S: np.ndarray
    error_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray
    share_S: np.ndarray
    share_error_S: np.ndarray
    divergence_SM: np.ndarray
    divergence_error_SM: np.ndarray
    pvalue_S: np.ndarray
    adjusted_S: np.ndarray


@dataclass(frozen=True)
class Change:
    """A paired mean change over sequences: its standard error, t interval and two-sided p-value."""

    mean: float
    standard_error: float
    low: float
    high: float
    pvalue: float


def plain_profile(
    counts_SGMK: np.ndarray,
    tbin_G: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    alpha: float = 0.05,
) -> RoutingProfile:
    """Profile of the plain design: is the expert independent of the timestep bin, given masked status, in each layer?

    counts_SGMK: (S, G, 2, K) assignments of each sequence; tbin_G: (G,) its bin. A sequence's score is its counts less its
    total times the pooled shares; the summed scores of all bins are compared with those under random signs of the
    sequences (the effective scores of Hemerik, Goeman & Finos, J. R. Stat. Soc. B 2020), which leaves each sequence's own
    variance as it is. Information is by the delete-one-sequence jackknife: plug-in values, Miller and Madow's too, take
    tokens for independent. Raises UserError for fewer than 100 sequences, fewer than 2 bins or 2 sequences in one, and
    counts that are none.
    """
    counts, bins = plain_counts(counts_SGMK, tbin_G)
    signs_RG = signs(len(bins), resamples, rng)
    drawn_RS = plain_null(counts, bins, signs_RG)
    tables = (plain_tables(layer, bins) for layer in counts)
    return _profile(tables, pvalues(drawn_RS), step_down(drawn_RS), signs_RG, alpha)


def crossed_profile(
    counts_SGTMK: np.ndarray, *, rng: np.random.Generator, resamples: int = RESAMPLES, alpha: float = 0.05
) -> RoutingProfile:
    """Profile of the crossed design: do the same tokens meet the same experts at all timesteps, in each layer?

    counts_SGTMK: (S, G, T, 2, K) assignments of each sequence at each timestep, of tokens whose status never changes; or
    (S, G, T, K). A sequence's scores, less their mean over timesteps, are summed over sequences and compared with those
    under timesteps permuted within each sequence, and with those under random signs of whole sequences, because nested masks
    make neighbouring timesteps alike. The larger p-value is given. Raises UserError as `plain_profile` does.
    """
    counts = crossed_counts(counts_SGTMK)
    nulls = crossed_nulls(counts, rng, resamples)
    pvalue_S, adjusted_S = (np.maximum(*map(judge, nulls)) for judge in (pvalues, step_down))
    signs_RG = signs(counts.shape[1], resamples, rng)
    return _profile((crossed_tables(layer) for layer in counts), pvalue_S, adjusted_S, signs_RG, alpha)


def paired_change(before_GT: np.ndarray, after_GT: np.ndarray, *, alpha: float = 0.05) -> Change:
    """after - before, averaged over timesteps within a sequence, over sequences. All zeros are a change of exactly 0.

    Raises UserError for unequal shapes, too few sequences and values that are not finite.
    """
    before, after = np.asarray(before_GT, float), np.asarray(after_GT, float)
    if before.ndim != 2 or before.shape != after.shape or not before.size:
        raise UserError(
            f"a change needs two tables of sequences x timesteps, not shapes {before.shape} and {after.shape}"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise UserError("a change needs finite values")
    _enough(len(before))
    change_G = (after - before).mean(1)
    mean, error = float(change_G.mean()), float(change_G.std(ddof=1) / np.sqrt(len(change_G)))
    if error == 0:
        return Change(mean, 0.0, mean, mean, float(mean == 0))
    df = len(change_G) - 1
    reach = float(-special.stdtrit(df, alpha / 2)) * error
    return Change(mean, error, mean - reach, mean + reach, float(2 * special.stdtr(df, -abs(mean) / error)))


def _profile(
    tables: Iterable[tuple[np.ndarray, np.ndarray]],
    pvalue_S: np.ndarray,
    adjusted_S: np.ndarray,
    signs_RG: np.ndarray,
    alpha: float,
) -> RoutingProfile:
    statistics = (mutual_information, dependent_share, jensen_shannon)
    found = [[jackknife(statistic, *table) for statistic in statistics] for table in tables]
    nats, share, divergence = map(_together, zip(*found, strict=True))
    reach_S = band(nats, signs_RG, alpha) * nats.standard_error
    return RoutingProfile(
        nats_S=nats.value,
        error_S=nats.standard_error,
        low_S=nats.value - reach_S,
        high_S=nats.value + reach_S,
        share_S=share.value,
        share_error_S=share.standard_error,
        divergence_SM=divergence.value,
        divergence_error_SM=divergence.standard_error,
        pvalue_S=pvalue_S,
        adjusted_S=adjusted_S,
    )


def _together(found: Sequence[Jackknifed]) -> Jackknifed:
    return Jackknifed(*(np.stack([getattr(one, name) for one in found]) for name in vars(found[0])))


def plain_counts(counts_SGMK: np.ndarray, tbin_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The counts as floats, and bins numbered from 0. Raises UserError as `plain_profile` does."""
    counts, tbin = _counts(counts_SGMK), np.asarray(tbin_G)
    shape = counts.shape[1:]
    if len(shape) != 3 or shape[1] != 2:
        raise UserError(f"counts must have the shape (sequences, 2, experts), visible before masked, not {shape}")
    if tbin.shape != shape[:1]:
        raise UserError(f"timestep bins must have the shape {shape[:1]}, one for each sequence, not {tbin.shape}")
    if not (np.issubdtype(tbin.dtype, np.integer) or (np.isfinite(tbin).all() and (tbin == np.round(tbin)).all())):
        raise UserError("timestep bins must be whole numbers")
    _enough(shape[0])
    known, bins, sizes = np.unique(tbin, return_inverse=True, return_counts=True)
    if len(known) < 2:
        raise UserError("a dependence on the timestep needs at least 2 timestep bins, not 1")
    if sizes.min() < 2:
        raise UserError(f"timestep bin {known[sizes.argmin()]} has 1 sequence: at least 2 are needed in each")
    return counts, bins


def crossed_counts(counts_SGTMK: np.ndarray) -> np.ndarray:
    """The counts as floats, (S, G, T, M, K). Raises UserError as `plain_profile` does."""
    counts = _counts(counts_SGTMK)
    counts = counts[:, :, :, None] if counts.ndim == 4 else counts
    shape = counts.shape[1:]
    if len(shape) != 4 or shape[1] < 2:
        raise UserError(f"counts must have the shape (sequences, at least 2 timesteps, 2, experts), not {shape}")
    _enough(shape[0])
    return counts


def _counts(counts: np.ndarray) -> np.ndarray:
    given = np.asarray(counts)
    if given.ndim < 4 or not len(given):
        raise UserError(f"a profile needs counts of at least one layer, not shape {given.shape}")
    try:
        values = given.astype(float)
    except (TypeError, ValueError):
        raise UserError("counts must be an array of numbers") from None
    if not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise UserError("counts must be finite, not negative, and not empty")
    if not values.reshape(len(values), -1).any(1).all():
        raise UserError("no token was counted: more tokens in a sequence, or more sequences, are needed")
    return values


def _enough(sequences: int) -> None:
    if sequences < SEQUENCES:
        raise UserError(f"{sequences} sequences are too few to tell: at least {SEQUENCES} are needed")
