"""The random hierarchy model (Cagnetta et al., arXiv 2307.02129): sequences as the leaves of a binary tree of rules.

A symbol at one level is rewritten as one of m pairs of symbols of the level below; no pair belongs to two symbols, so
that a sequence can be parsed in one way only. Structure at all scales, and still an entropy in closed form.
"""

import math
from dataclasses import dataclass

import numpy as np

from core.errors import UserError

SYMBOLS, RULES = 16, 4


@dataclass(frozen=True)
class TreeSource:
    """rules_DVM2: at each of D levels from the root, the m pairs that each of V symbols may become."""

    rules_DVM2: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, length: int, symbols: int = SYMBOLS, rules: int = RULES) -> "TreeSource":
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
