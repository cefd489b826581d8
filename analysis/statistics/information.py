"""Mutual information of expert choice and timestep: entropies of tables of counts, and their jackknife.

Shapes: G sequences, M masked statuses (0 visible, 1 masked), B timestep bins, K experts. Everything is in nats. The
sequence is the unit: its tokens are alike, so that the bias and the error of an estimate come from the number of
sequences, not of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy


@dataclass(frozen=True)
class Jackknifed:
    """Delete-one-sequence jackknife of a statistic.

    value, standard_error: of any shape (...). influence: (G, ...), each sequence's share in the error; its squares sum to
    the squared standard error.
    """

    value: np.ndarray
    standard_error: np.ndarray
    influence: np.ndarray


def mutual_information(table: np.ndarray) -> np.ndarray:
    """The plug-in I(E; T | M) of tables of counts (..., M, B, K), in nats. Returns (...); 0 for an empty table."""
    cells, rows = xlogy(table, table).sum((-1, -2)), _xlogx(table.sum(-1)).sum(-1)
    columns, whole = _xlogx(table.sum(-2)).sum(-1), _xlogx(table.sum((-1, -2)))
    return (cells - rows - columns + whole).sum(-1) / np.maximum(table.sum((-1, -2, -3)), 1)


def expert_entropy(table: np.ndarray) -> np.ndarray:
    """The plug-in H(E | M) of tables (..., M, B, K), in nats. Returns (...)."""
    columns = table.sum(-2)
    return (_xlogx(columns.sum(-1)) - _xlogx(columns).sum(-1)).sum(-1) / np.maximum(columns.sum((-1, -2)), 1)


def dependent_share(table: np.ndarray) -> np.ndarray:
    """I(E; T | M) / H(E | M) of tables (..., M, B, K): 0 independent, 1 when t says the expert. NaN without entropy."""
    entropy = expert_entropy(table)
    return np.divide(mutual_information(table), entropy, out=np.full(np.shape(entropy), np.nan), where=entropy > 0)


def jensen_shannon(table: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon divergence of the bins' expert shares, all bins weighing alike (Lin 1991, Eq. 5.1), in nats.

    table: (..., M, B, K). Bins without tokens of a status are left out. Returns (..., M), from 0 to log(bins).
    """
    tokens = table.sum(-1, keepdims=True)
    shares = table / np.maximum(tokens, 1)
    weights = (tokens[..., 0] > 0) / np.maximum((tokens[..., 0] > 0).sum(-1, keepdims=True), 1)
    mean = (weights[..., None] * shares).sum(-2)
    return (weights * _xlogx(shares).sum(-1)).sum(-1) - _xlogx(mean).sum(-1)


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], table: np.ndarray, without_G: np.ndarray) -> Jackknifed:
    """G theta - (G - 1) mean(theta without one sequence), and its error (Quenouille 1956, Tukey 1958).

    table: (M, B, K); without_G: (G, M, B, K), the tables without one sequence each. Correcting each bin by its own sequences
    alone would leave several times as much bias under independence: there the next order is of the other sign.
    """
    whole, deleted = statistic(table), statistic(without_G)
    n, mean = len(deleted), deleted.mean(0)
    influence = np.sqrt((n - 1) / n) * (mean - deleted)
    return Jackknifed(n * whole - (n - 1) * mean, np.sqrt((influence**2).sum(0)), influence)


def plain_tables(counts_GMK: np.ndarray, bin_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table (M, B, K) of sequences that are each in one bin, numbered from 0, and those without each: (G, M, B, K)."""
    sequences, statuses, experts = counts_GMK.shape
    table = np.zeros((bin_G.max() + 1, statuses, experts))
    np.add.at(table, bin_G, counts_GMK)
    table = table.swapaxes(0, 1)
    without = np.repeat(table[None], sequences, 0)
    without[np.arange(sequences), :, bin_G] -= counts_GMK
    return table, without


def crossed_tables(counts_GTMK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of sequences that are each in all T bins."""
    each = counts_GTMK.swapaxes(1, 2)
    table = each.sum(0)
    return table, table - each


def _xlogx(x: np.ndarray) -> np.ndarray:
    return xlogy(x, x)
