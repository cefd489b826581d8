"""Sources whose probabilities are known exactly, so that a model's NELBO has a floor to be measured against.

Each can say what a sequence's probability is and what the hidden tokens of a partly masked one are, given the rest: the
NELBO of that exact posterior is the source's entropy, and no model's expected NELBO is below it.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.errors import UserError

STATES = 16
HIDDEN = 24
DOMAINS = 4
RULES = 4
CONCENTRATION = 0.3  # of the Dirichlet rows: small = peaked transitions = much to learn


class Source(Protocol):
    """A distribution over token sequences of any (or any allowed) length."""

    @property
    def vocabulary_size(self) -> int:
        """Tokens are 0 .. vocabulary_size - 1."""

    def sample(self, sequences: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Independent sequences. Returns (sequences, length) uint16 tokens."""

    def log_probability(self, tokens_NL: np.ndarray) -> np.ndarray:
        """log p of each sequence, in nats. Returns (N,)."""

    def posterior(self, tokens_NL: np.ndarray, masked_NL: np.ndarray) -> np.ndarray:
        """p(token | all visible tokens) at every position, what is masked there ignored. Returns (N, L, V)."""


def posterior_nelbo(
    source: Source, tokens_NL: np.ndarray, masked_NL: np.ndarray, block_length: int | None = None
) -> np.ndarray:
    """The NELBO in nats per token that the exact posterior has on sequences under exact-count masks.

    It is each sequence's mean -log p(token | visible) over its masked tokens. block_length: of block diffusion, where a
    block is given those before it clean and nothing of those after it. Returns (N,).
    """
    length = tokens_NL.shape[1]
    size, total_N = block_length or length, np.zeros(len(tokens_NL))
    for start in range(0, length, size):
        block = slice(start, min(start + size, length))
        hidden_NL = masked_NL.copy()
        hidden_NL[:, :start], hidden_NL[:, block.stop :] = False, True
        posterior_NWV = source.posterior(tokens_NL, hidden_NL)[:, block]
        truth_NW = np.take_along_axis(posterior_NWV, tokens_NL[:, block].astype(np.int64)[..., None], axis=2)[..., 0]
        with np.errstate(divide="ignore"):
            total_N += np.where(masked_NL[:, block], -np.log(truth_NW), 0.0).sum(1)
    return total_N / masked_NL.sum(1)


@dataclass(frozen=True)
class HiddenMarkovSource:
    """A hidden Markov model.

    initial_S: distribution of the first hidden state; transitions_SS: row s gives that of the state after s;
    emissions_SV: row s gives that of the token that s emits.
    """

    initial_S: np.ndarray
    transitions_SS: np.ndarray
    emissions_SV: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, hidden: int = HIDDEN, vocabulary: int = STATES) -> "HiddenMarkovSource":
        """Dirichlet transitions and emissions; starts stationary."""
        transitions_SS = _rows(rng, hidden, hidden)
        return cls(stationary_distribution(transitions_SS), transitions_SS, _rows(rng, hidden, vocabulary))

    @property
    def vocabulary_size(self) -> int:
        return self.emissions_SV.shape[1]

    def sample(self, sequences: int, length: int, rng: np.random.Generator) -> np.ndarray:
        after_SS, emitted_SV = self.transitions_SS.cumsum(1), self.emissions_SV.cumsum(1)
        tokens_NL = np.empty((sequences, length), dtype=np.uint16)
        state_N = _draw(np.broadcast_to(self.initial_S.cumsum(), (sequences, len(self.initial_S))), rng)
        for position in range(length):
            tokens_NL[:, position] = _draw(emitted_SV[state_N], rng)
            state_N = _draw(after_SS[state_N], rng)
        return tokens_NL

    def log_probability(self, tokens_NL: np.ndarray) -> np.ndarray:
        """By the forward algorithm (Rabiner, Proc. IEEE 77(2), 1989, Eqs. 19-21). Returns (N,)."""
        likelihood_NLS = self.emissions_SV.T[tokens_NL.astype(np.int64)]
        total_N = np.zeros(len(tokens_NL))
        belief_NS = np.broadcast_to(self.initial_S, likelihood_NLS[:, 0].shape)
        for position in range(tokens_NL.shape[1]):
            joint_NS = belief_NS * likelihood_NLS[:, position]
            evidence_N1 = joint_NS.sum(1, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                total_N = total_N + np.log(evidence_N1[:, 0])
                belief_NS = np.nan_to_num(joint_NS / evidence_N1) @ self.transitions_SS
        return total_N

    def posterior(self, tokens_NL: np.ndarray, masked_NL: np.ndarray) -> np.ndarray:
        """By forward-backward, masked positions telling nothing. Returns (N, L, V)."""
        length = tokens_NL.shape[1]
        likelihood_NLS = self.emissions_SV.T[tokens_NL.astype(np.int64)]
        likelihood_NLS = np.where(masked_NL[..., None], 1.0, likelihood_NLS)
        before_NLS, after_NLS = np.empty_like(likelihood_NLS), np.ones_like(likelihood_NLS)
        before_NLS[:, 0] = self.initial_S
        for position in range(1, length):
            step_NS = (before_NLS[:, position - 1] * likelihood_NLS[:, position - 1]) @ self.transitions_SS
            before_NLS[:, position] = step_NS / step_NS.sum(1, keepdims=True)
        for position in range(length - 2, -1, -1):
            step_NS = (after_NLS[:, position + 1] * likelihood_NLS[:, position + 1]) @ self.transitions_SS.T
            after_NLS[:, position] = step_NS / step_NS.sum(1, keepdims=True)
        tokens_NLV = (before_NLS * after_NLS) @ self.emissions_SV
        return tokens_NLV / tokens_NLV.sum(-1, keepdims=True)


class MarkovSource(HiddenMarkovSource):
    """A stationary first-order Markov chain: a hidden one whose states are its tokens."""

    @classmethod
    def of(cls, transitions_SS: np.ndarray) -> "MarkovSource":
        return cls(stationary_distribution(transitions_SS), transitions_SS, np.eye(len(transitions_SS)))

    @classmethod
    def random(cls, rng: np.random.Generator, states: int = STATES) -> "MarkovSource":  # type: ignore[override]
        """A chain with Dirichlet rows; mixed with 1 % of uniform so that every state is reachable."""
        return cls.of(_rows(rng, states, states))

    def sample(self, sequences: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Draws a number for each state and none for its token."""
        cumulative_SS = self.transitions_SS.cumsum(1)
        state_N = _draw(np.broadcast_to(self.initial_S.cumsum(), (sequences, len(self.initial_S))), rng)
        tokens_NL = np.empty((sequences, length), dtype=np.uint16)
        for position in range(length):
            tokens_NL[:, position] = state_N
            state_N = _draw(cumulative_SS[state_N], rng)
        return tokens_NL

    def entropy_per_token(self, length: int) -> float:
        """Exact entropy of a sequence of that length over its length, in nats: (H(pi) + (L - 1) H(T)) / L."""
        first = _entropy(self.initial_S)
        rate = float((self.initial_S * np.array([_entropy(row) for row in self.transitions_SS])).sum())
        return (first + (length - 1) * rate) / length


@dataclass(frozen=True)
class TreeSource:
    """The random hierarchy model (Cagnetta et al., arXiv 2307.02129): sequences as the leaves of a binary tree of rules.

    A symbol at one level is rewritten as one of m pairs of symbols of the level below; no pair belongs to two symbols, so
    that a sequence can be parsed in one way only. Structure at all scales, and still an entropy in closed form.
    rules_DVM2: at each of D levels from the root, the m pairs that each of V symbols may become.
    """

    rules_DVM2: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, length: int, symbols: int = STATES, rules: int = RULES) -> "TreeSource":
        """A grammar for sequences of that length. Raises UserError when it is no power of two."""
        depth = length.bit_length() - 1
        if length != 2**depth:
            raise UserError(
                f"data.corpus=tree is of binary trees: data.sequence_length={length} must be a power of two, such as "
                f"{2**depth} or {2 ** (depth + 1)}"
            )
        levels = []
        for _ in range(depth):
            pairs = rng.permutation(symbols * symbols)[: symbols * rules]
            levels.append(np.stack([pairs // symbols, pairs % symbols], -1).reshape(symbols, rules, 2))
        return cls(np.array(levels).reshape(depth, symbols, rules, 2))

    @property
    def vocabulary_size(self) -> int:
        return self.rules_DVM2.shape[1]

    def sample(self, sequences: int, length: int, rng: np.random.Generator) -> np.ndarray:
        self._check(length)
        level_NW = rng.integers(self.vocabulary_size, size=(sequences, 1))
        for rules_VM2 in self.rules_DVM2:
            chosen_NW = rng.integers(rules_VM2.shape[1], size=level_NW.shape)
            level_NW = rules_VM2[level_NW, chosen_NW].reshape(sequences, -1)
        return level_NW.astype(np.uint16)

    def entropy_per_token(self, length: int) -> float:
        """(log V + (L - 1) log m) / L nats: the root is uniform, and each of L - 1 inner nodes picks one of m rules."""
        self._check(length)
        symbols, rules = self.rules_DVM2.shape[1:3]
        return (math.log(symbols) + (length - 1) * math.log(rules)) / length

    def log_probability(self, tokens_NL: np.ndarray) -> np.ndarray:
        up = self._upward(np.eye(self.vocabulary_size)[tokens_NL.astype(np.int64)])
        with np.errstate(divide="ignore"):
            return np.log(up[0][0][:, 0].mean(-1)) + up[0][1]

    def posterior(self, tokens_NL: np.ndarray, masked_NL: np.ndarray) -> np.ndarray:
        """By belief propagation, which is exact on trees. Returns (N, L, V)."""
        leaves_NLV = np.eye(self.vocabulary_size)[tokens_NL.astype(np.int64)]
        up = self._upward(np.where(masked_NL[..., None], 1.0, leaves_NLV))
        down_NWV = np.full((len(tokens_NL), 1, self.vocabulary_size), 1 / self.vocabulary_size)
        for level, rules_VM2 in enumerate(self.rules_DVM2):
            below_NWV = up[level + 1][0]
            left_NWV, right_NWV = below_NWV[:, ::2], below_NWV[:, 1::2]
            child = np.zeros((*left_NWV.shape[:2], 2, self.vocabulary_size))
            for symbol, pairs_M2 in enumerate(rules_VM2):
                for left, right in pairs_M2:
                    child[:, :, 0, left] += down_NWV[:, :, symbol] * right_NWV[:, :, right]
                    child[:, :, 1, right] += down_NWV[:, :, symbol] * left_NWV[:, :, left]
            down_NWV = child.reshape(len(child), -1, self.vocabulary_size)
            down_NWV = down_NWV / down_NWV.sum(-1, keepdims=True)
        return down_NWV

    def _upward(self, leaves_NLV: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each level from the root: what the leaves below say of every node's symbol, (N, W, V), each node's scaled
        to a maximum of 1, and the logarithm (N,) of all scales from there down."""
        levels = [(leaves_NLV, np.zeros(len(leaves_NLV)))]
        for rules_VM2 in self.rules_DVM2[::-1]:
            below_NWV, log_scale_N = levels[0]
            left_NWV, right_NWV = below_NWV[:, ::2], below_NWV[:, 1::2]
            both = left_NWV[..., rules_VM2[..., 0]] * right_NWV[..., rules_VM2[..., 1]]
            above_NWV = both.mean(-1)
            top_NW1 = above_NWV.max(-1, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                log_scale_N = log_scale_N + np.log(top_NW1[..., 0]).sum(1)
                levels.insert(0, (np.nan_to_num(above_NWV / top_NW1), log_scale_N))
        return levels

    def _check(self, length: int) -> None:
        if length != 2 ** len(self.rules_DVM2):
            raise ValueError(f"this grammar makes sequences of length {2 ** len(self.rules_DVM2)}, not {length}")


def mixture(chains: list[MarkovSource]) -> HiddenMarkovSource:
    """Each sequence comes from one of K chains, all alike likely: a hidden Markov model whose K blocks never meet.

    Hidden state k S + s is state s of chain k, so that a sequence's domain is its first state // S.
    """
    domains, states = len(chains), chains[0].vocabulary_size
    transitions = np.zeros((domains * states, domains * states))
    for index, chain in enumerate(chains):
        block = slice(index * states, (index + 1) * states)
        transitions[block, block] = chain.transitions_SS
    initial = np.concatenate([chain.initial_S for chain in chains]) / domains
    return HiddenMarkovSource(initial, transitions, np.tile(np.eye(states), (domains, 1)))


def stationary_distribution(transitions_SS: np.ndarray) -> np.ndarray:
    """The distribution that one step of the chain leaves as it is. Returns (S,)."""
    states = len(transitions_SS)
    equations = np.vstack([transitions_SS.T - np.eye(states), np.ones(states)])
    solution, *_ = np.linalg.lstsq(equations, np.append(np.zeros(states), 1.0), rcond=None)
    return solution / solution.sum()


def _rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return 0.99 * rng.dirichlet(np.full(columns, CONCENTRATION), size=rows) + 0.01 / columns


def _draw(cumulative_NS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random((len(cumulative_NS), 1)) > cumulative_NS).sum(1).clip(max=cumulative_NS.shape[1] - 1)


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
