"""Sources whose entropy is known exactly, so that a model's NELBO has a floor to be measured against."""

from dataclasses import dataclass

import numpy as np

STATES = 16
CONCENTRATION = 0.3  # of the Dirichlet rows: small = peaked transitions = much to learn


@dataclass(frozen=True)
class MarkovSource:
    """A stationary first-order Markov chain.

    transitions_SS: row s gives the distribution of the state after s; stationary_S: its left eigenvector, the
    distribution of the first state.
    """

    transitions_SS: np.ndarray
    stationary_S: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, states: int = STATES) -> "MarkovSource":
        """A chain with Dirichlet rows; mixed with 1 % of uniform so that every state is reachable."""
        rows = rng.dirichlet(np.full(states, CONCENTRATION), size=states)
        transitions_SS = 0.99 * rows + 0.01 / states
        return cls(transitions_SS, stationary_distribution(transitions_SS))

    def sample(self, sequences: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Independent stationary sequences. Returns (sequences, length) uint16 states."""
        cumulative_SS = self.transitions_SS.cumsum(1)
        state_N = (rng.random((sequences, 1)) > self.stationary_S.cumsum()).sum(1).clip(max=len(self.stationary_S) - 1)
        out_NL = np.empty((sequences, length), dtype=np.uint16)
        for position in range(length):
            out_NL[:, position] = state_N
            draws = rng.random((sequences, 1))
            state_N = (draws > cumulative_SS[state_N]).sum(1).clip(max=len(self.stationary_S) - 1)
        return out_NL

    def entropy_per_token(self, length: int) -> float:
        """Exact entropy of a sequence of that length over its length, in nats: (H(pi) + (L - 1) H(T)) / L."""
        first = _entropy(self.stationary_S)
        rate = float((self.stationary_S * np.array([_entropy(row) for row in self.transitions_SS])).sum())
        return (first + (length - 1) * rate) / length


def stationary_distribution(transitions_SS: np.ndarray) -> np.ndarray:
    """The distribution that one step of the chain leaves as it is. Returns (S,)."""
    states = len(transitions_SS)
    equations = np.vstack([transitions_SS.T - np.eye(states), np.ones(states)])
    solution, *_ = np.linalg.lstsq(equations, np.append(np.zeros(states), 1.0), rcond=None)
    return solution / solution.sum()


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
