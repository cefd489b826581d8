"""Types of decoding: settings, a denoiser's input, and results; core.diffusion.sampler decodes.

Shapes: B sequences of at most L tokens, W positions of the active block in each, M positions whose tokens are asked for, V
vocabulary. A sequence is its prompt and the response; those of a batch may have different lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from core.config.field_types import check_fields
from core.config.model import ModelConfig
from core.diffusion.decode_rules import DECODE_RULES
from core.errors import UserError, require

if TYPE_CHECKING:
    from torch import Tensor  # seconds to import, which whoever only checks settings can do without

Caching = Literal["none", "prefix", "dual"]
CACHING: tuple[Caching, ...] = get_args(Caching)

MOST = 1e6  # of a temperature and of guidance: far beyond any use, and far from where logits become infinite


@dataclass(frozen=True)
class Sampling:
    """Decoding settings.

    Blocks are decoded from left to right, each before the next is begun; block_length None is one block, fully parallel.
    steps: network calls of a response, split evenly over its blocks; None is one for each token. With a threshold there
    is no number of steps: a call fixes the tokens that are at least so sure (0.95 in LLaDA2.0; 0.76, with a low threshold of
    0.62, in dInfer). guidance: the scale w of classifier-free guidance, logits = u + (1 + w) (c - u) with u of a sequence
    whose prompt is masked (arXiv 2207.12598; LLaDA). cache: keys and values of what is outside the active block are kept
    from its first call on, which is an approximation (Fast-dLLM, arXiv 2505.22618). Raises UserError.
    """

    length: int = 128
    block_length: int | None = None
    steps: int | None = None
    remasking: str = "low_confidence"
    threshold: float | None = None
    low_threshold: float | None = None
    temperature: float = 0.0
    guidance: float = 0.0
    cache: Caching = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, skip=("remasking", "cache"), endless=("temperature", "guidance"))
        require(self.length >= 0, f"length={self.length} must not be negative")
        for name in ("temperature", "guidance", "seed"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("temperature", "guidance"):
            require(getattr(self, name) <= MOST, f"{name}={getattr(self, name)} must be at most {MOST:g}")
        require(self.remasking in DECODE_RULES, f"remasking={self.remasking} must be one of {', '.join(DECODE_RULES)}")
        require(self.cache in CACHING, f"cache={self.cache} must be one of {', '.join(CACHING)}")
        self._check_blocks()
        self._check_threshold()

    def _check_blocks(self) -> None:
        size = self.length if self.block_length is None else self.block_length
        require(
            size >= 1 or self.length == 0,
            f"block_length={self.block_length} must be at least 1; leave it out for one block",
        )
        if size and self.length % size:
            divisors = (d for d in range(self.length, 0, -1) if self.length % d == 0)
            raise UserError(
                f"block_length={size} doesn't divide length={self.length}: use {min(divisors, key=lambda d: abs(d - size))}"
            )
        if self.steps is not None:
            blocks = self.length // size if size else 1
            require(
                self.steps >= blocks,
                f"steps={self.steps} are fewer than the {blocks} blocks of block_length={size} in length={self.length}: use "
                f"at least {blocks}, or longer blocks",
            )
            require(
                self.steps <= self.length or not self.length,
                f"steps={self.steps} exceed length={self.length}: a step fixes at least one token",
            )

    def _check_threshold(self) -> None:
        if self.threshold is None:
            require(self.low_threshold is None, "low_threshold means nothing without threshold: set that too")
            return
        require(0 < self.threshold <= 1, f"threshold={self.threshold} must lie in (0, 1]")
        require(
            self.low_threshold is None or 0 < self.low_threshold <= self.threshold,
            f"low_threshold={self.low_threshold} must lie in (0, threshold={self.threshold}]",
        )
        require(
            self.steps is None, f"steps={self.steps} and threshold={self.threshold} exclude each other: leave one out"
        )
        require(
            DECODE_RULES[self.remasking].shares,
            f"threshold={self.threshold} needs a score that is a share of 1, and remasking={self.remasking} gives none: use "
            f"{' or '.join(rule.name for rule in DECODE_RULES.entries() if rule.shares)}",
        )


class Canvas(NamedTuple):
    """Input of a denoiser, and the positions asked for.

    tokens_BL: int64, masks in place; beyond a sequence's length_B is filling that must not be seen. position_BW: the active
    block's positions in each sequence. wanted_BW: bool, those whose logits are asked for. first: the block's first call.
    """

    tokens_BL: "Tensor"
    length_B: "Tensor"
    position_BW: "Tensor"
    wanted_BW: "Tensor"
    first: bool


Predict: TypeAlias = "Callable[[Canvas], Tensor]"  # the (M, V) logits of the wanted positions, sequence by sequence


class Fixed(NamedTuple):
    """The tokens that one network call fixed: which sequence (M,), where in it, which token, and its probability then.

    step: the call, counted from 0; block: the block that was active.
    """

    step: int
    block: int
    sequence_M: "Tensor"
    position_M: "Tensor"
    token_M: "Tensor"
    confidence_M: "Tensor"


@dataclass(frozen=True)
class Sampled:
    """Decoded sequences, and how they came about.

    tokens_BL: int64, prompt and response, filled with 0 beyond length_B. step_BL: the network call that fixed each token, -1
    where it was given. confidence_BL: its probability then, NaN where it was given. nfe_B: the network calls that each
    sequence needed, two for each under guidance.
    """

    tokens_BL: "Tensor"
    length_B: "Tensor"
    step_BL: "Tensor"
    confidence_BL: "Tensor"
    nfe_B: "Tensor"

    @property
    def tokens_per_call(self) -> float:
        """Tokens fixed per network call (TPF), over all sequences."""
        return int((self.step_BL >= 0).sum()) / max(1, int(self.nfe_B.sum()))

    def sequence(self, index: int) -> "Tensor":
        """One sequence's tokens, prompt and response, without filling. Returns (length,) int64."""
        return self.tokens_BL[index, : int(self.length_B[index])]


def check_sampling(model: ModelConfig, prompts: Sequence[Sequence[int]], settings: Sampling) -> int:
    """Refuse a model without a mask token and sequences that it has no positions for; returns the mask token."""
    if model.mask_id is None or model.causal:
        raise UserError(
            "the model has no mask token to decode (model.mask_id is none, or model.causal is true): it is autoregressive, "
            "so decode it as such"
        )
    require(
        model.block_length is None or settings.block_length in (None, model.block_length),
        f"block_length={settings.block_length} isn't the network's own (model.block_length={model.block_length}), in which "
        "it is decoded: leave it out",
    )
    check_context(model, prompts, settings.length)
    return model.mask_id


def check_autoregressive(model: ModelConfig, prompts: Sequence[Sequence[int]], length: int) -> int:
    """Refuse a model that isn't causal and sequences that it has no positions for; returns the token that starts one."""
    if not model.causal:
        raise UserError("the model sees both sides (model.causal is false): it can't be decoded autoregressively")
    if model.eos_id is None:
        raise UserError("model.eos_id is none: an autoregressive sequence starts with eos, so set it")
    check_context(model, prompts, length)
    return model.eos_id


def check_context(model: ModelConfig, prompts: Sequence[Sequence[int]], length: int) -> None:
    """Refuse a prompt that doesn't fit the model's context together with the response, and tokens that it hasn't."""
    for index, prompt in enumerate(prompts):
        require(
            len(prompt) + length <= model.max_positions,
            f"prompt {index} has {len(prompt)} tokens, and model.max_positions={model.max_positions} leave "
            f"{max(0, model.max_positions - len(prompt))} for a response of length={length}: shorten one of them",
        )
        wrong = next((token for token in prompt if not 0 <= token < model.vocab_size), None)
        require(wrong is None, f"prompt {index} has token {wrong}: tokens lie in 0..{model.vocab_size - 1}")
