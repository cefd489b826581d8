"""Decode rules: how a sampler ranks masked positions, of which the highest are fixed first and the others stay masked.

`decode_rule` registers a function as a rule of Sampling.remasking. Shapes: M masked positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor  # seconds to import, which whoever only checks settings can do without


class ScorePositions(Protocol):
    """Scores (M,) in fp64. log_probs_MV: fp64; tokens_M: the token drawn at each; chance: draws U[0, 1) numbers, (M,)."""

    def __call__(self, log_probs_MV: "Tensor", tokens_M: "Tensor", chance: "Callable[[], Tensor]") -> "Tensor": ...


@dataclass(frozen=True)
class DecodeRule:
    """A decode rule. shares: its scores are shares of 1, so that a threshold means something. random: chance has a part."""

    name: str
    implementation: ScorePositions
    shares: bool = False
    random: bool = False


DECODE_RULES: Registry[DecodeRule] = Registry("remasking")


def decode_rule(name: str, *, shares: bool = False, random: bool = False) -> Callable[[ScorePositions], ScorePositions]:
    """Register a function as a decode rule. shares, random: as in DecodeRule."""

    def register(score: ScorePositions) -> ScorePositions:
        DECODE_RULES.add(DecodeRule(name, score, shares, random))
        return score

    return register


@decode_rule("low_confidence", shares=True)
def low_confidence(log_probs_MV: "Tensor", tokens_M: "Tensor", chance: "Callable[[], Tensor]") -> "Tensor":
    """The probability of the drawn token (LLaDA, arXiv 2502.09992, Sec. 2.4).

    At temperatures above 0 the order depends on the draws: not even one token a step samples the model's distribution.
    """
    return log_probs_MV.gather(-1, tokens_M[:, None])[:, 0].exp()


@decode_rule("random", random=True)
def at_random(log_probs_MV: "Tensor", tokens_M: "Tensor", chance: "Callable[[], Tensor]") -> "Tensor":
    """Chance alone."""
    return chance()


@decode_rule("entropy")
def entropy(log_probs_MV: "Tensor", tokens_M: "Tensor", chance: "Callable[[], Tensor]") -> "Tensor":
    """Minus the prediction's entropy, in nats."""
    import torch  # as above

    return torch.special.entr(log_probs_MV.exp()).sum(-1).neg()


@decode_rule("margin", shares=True)
def margin(log_probs_MV: "Tensor", tokens_M: "Tensor", chance: "Callable[[], Tensor]") -> "Tensor":
    """The difference of the two largest probabilities (arXiv 2502.06768)."""
    first_M2 = log_probs_MV.exp().topk(2, dim=-1).values
    return first_M2[:, 0] - first_M2[:, 1]
