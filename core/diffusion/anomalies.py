"""Anomalies of decoding: responses that repeat themselves, and sequences whose calls only guess."""

from dataclasses import dataclass

import numpy as np

from core.diffusion.sampling import Sampled

NGRAM = 4
CYCLES = 3  # so often a stretch must come before it is a loop
LOOP = 24  # tokens that a loop fills at least: three blanks are no anomaly
PERIOD = 64  # the longest that is looked for
GUESS = 0.5  # a token fixed below this probability was a guess
STUCK = 16  # calls in a row that only guess


@dataclass(frozen=True)
class Anomalies:
    """Anomalies of a decoded response.

    repetition: the share of its 4-grams that it had before (seq-rep-4, arXiv 1908.04319). loop: as `longest_loop`.
    guesses: the most calls in a row that fixed no token of a probability above a half.
    """

    repetition: float
    loop: int
    guesses: int

    @property
    def repeats(self) -> bool:
        """True if it goes in circles: a loop, or most 4-grams seen before."""
        return self.loop > 0 or self.repetition > 0.5

    @property
    def stuck(self) -> bool:
        """True if for 16 calls in a row the sampler had nothing better than a guess to fix."""
        return self.guesses >= STUCK


def find_anomalies(sampled: Sampled, index: int, eos_id: int | None = None) -> Anomalies:
    """The anomalies of one sequence's response, of which what follows its first end token is left out."""
    length = int(sampled.length_B[index])
    step_L = sampled.step_BL[index, :length].numpy()
    decoded_L = step_L >= 0
    tokens_N = sampled.tokens_BL[index, :length].numpy()[decoded_L]
    ends = np.flatnonzero(tokens_N == (-1 if eos_id is None else eos_id))
    tokens_N = tokens_N[: ends[0]] if len(ends) else tokens_N
    confidence_L, calls = sampled.confidence_BL[index, :length].numpy(), np.unique(step_L[decoded_L])
    sure = np.array([confidence_L[step_L == call].max() >= GUESS for call in calls], dtype=bool)
    return Anomalies(repetition(tokens_N), longest_loop(tokens_N), _longest_run(~sure))


def repetition(tokens_N: np.ndarray, n: int = NGRAM) -> float:
    """The share of n-grams that came before; 0 where there are none."""
    if len(tokens_N) < n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens_N, n)
    return 1 - len(np.unique(grams, axis=0)) / len(grams)


def longest_loop(tokens_N: np.ndarray) -> int:
    """Tokens in the longest stretch that repeats a period of up to 64 tokens at least three times; 0 below 24 tokens."""
    longest = 0
    for period in range(1, min(PERIOD, len(tokens_N) // CYCLES) + 1):
        same = _longest_run(tokens_N[period:] == tokens_N[:-period])
        if same >= (CYCLES - 1) * period and same + period >= LOOP:
            longest = max(longest, same + period)
    return longest


def _longest_run(flags: np.ndarray) -> int:
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return int((ends - starts).max()) if len(starts) else 0
