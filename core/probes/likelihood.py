"""Likelihood of a continuation given a context: a NELBO under masks, or exact for causal models.

Shapes: N continuations, R tokens of one, K masks of it, B rows of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from core.diffusion.losses import token_cross_entropy
from core.diffusion.masking import mask_validation
from core.diffusion.predictors import NetworkPredictor, needs_whole_sequence
from core.diffusion.sampler import decode, lay_out
from core.diffusion.sampling import Canvas, Predict, Sampling, check_autoregressive, check_sampling
from core.errors import require
from core.model.transformer import Denoiser
from core.runtime.random_streams import torch_stream

T = TypeVar("T")


class Continued(NamedTuple):
    """Tokens, and what stands before them."""

    context: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """log_p: of all tokens of a continuation, in nats; of a masked model its lower bound, -NELBO. se: the standard error over
    masks, taken for independent though their counts are stratified; 0 where nothing was drawn. greedy: whether decoding one
    token a call at temperature 0 gives these tokens."""

    log_p: float
    se: float
    greedy: bool


class _Row(NamedTuple):
    """One masking of one continuation: masked_R (bool), and what the sum of its cross-entropies counts for."""

    place: int
    masked_R: Tensor
    weight: float


def log_likelihoods(
    denoiser: Denoiser, asked: Sequence[Continued], *, draws: int = 128, seed: int = 0, batch: int = 16
) -> list[Likelihood]:
    """log p(tokens | context) of each, in order.

    A masked model: minus the mean over `draws` masks of the continuation of (R / n) sum CE, with exactly n of its R tokens
    masked and n stratified over 1..R (LLaDA, arXiv 2502.09992, Eq. 6). Continuations of one length meet the same masks, so
    that what they share cancels between the answers to a question. Where there are no more than `draws` masks, each is asked
    once and the bound is exact. A causal model: its likelihood, after eos. The size of a batch changes nothing but rounding.
    Raises UserError for sequences that the model has no positions for.
    """
    require(draws >= 1 and batch >= 1, f"draws={draws} and batch={batch} must be at least 1")
    if denoiser.config.causal or denoiser.config.mask_id is None:
        return _causal(denoiser, asked, batch)
    for each in asked:
        check_sampling(denoiser.config, [each.context], Sampling(length=len(each.tokens)))
    masks = {length: list(_masks(length, draws, seed)) for length in {len(each.tokens) for each in asked}}
    rows = [_Row(place, *mask) for place, each in enumerate(asked) for mask in masks[len(each.tokens)]]
    nats: list[list[float]] = [[] for _ in asked]
    predict = NetworkPredictor(denoiser)
    for part in _batches(rows, batch, [_length(asked[row.place]) for row in rows]):
        for row, found in zip(part, _masked_nats(predict, denoiser, asked, part), strict=True):
            nats[row.place].append(row.weight * found)
    greedy = _greedy(predict, denoiser, asked, batch)
    return [
        _likelihood(values, exact=_countable(len(each.tokens), draws), greedy=same)
        for values, each, same in zip(nats, asked, greedy, strict=True)
    ]


def _length(each: Continued) -> int:
    return len(each.context) + len(each.tokens)


def _countable(length: int, draws: int) -> bool:
    """True if there are no more masks of so many tokens than would be drawn."""
    return length <= draws.bit_length() and 2**length - 1 <= draws


def _masks(length: int, draws: int, seed: int) -> Iterator[tuple[Tensor, float]]:
    """The masks (R,) of a continuation, each with its weight: weight * sum CE has the NELBO as its mean over masks that are
    drawn, and as its sum over all masks where those are asked."""
    if not _countable(length, draws):
        masking = mask_validation(draws, length, torch_stream(seed, "likelihood"))
        yield from zip(masking.masked_BL, masking.weight_B.tolist(), strict=True)
        return
    for code in range(1, 2**length):
        count = code.bit_count()
        yield torch.tensor([bool(code >> place & 1) for place in range(length)]), 1 / (count * math.comb(length, count))


def _likelihood(nats: Sequence[float], *, exact: bool, greedy: bool) -> Likelihood:
    if exact:
        return Likelihood(0.0 - math.fsum(nats), 0.0, greedy)
    mean = math.fsum(nats) / len(nats)
    variance = math.fsum((value - mean) ** 2 for value in nats) / max(1, len(nats) - 1)
    return Likelihood(-mean, math.sqrt(variance / len(nats)), greedy)


def _batches(rows: Sequence[T], size: int, length_N: Sequence[int]) -> Iterator[list[T]]:
    """Rows of like length together, the longest first: whether they fit in memory is known at once."""
    order = sorted(range(len(rows)), key=lambda index: -length_N[index])
    for first in range(0, len(order), size):
        yield [rows[index] for index in order[first : first + size]]


@torch.inference_mode()
def _masked_nats(
    predict: Predict, denoiser: Denoiser, asked: Sequence[Continued], rows: Sequence[_Row]
) -> Sequence[float]:
    """The sum of each row's cross-entropies, in nats. Returns (B,)."""
    device, mask_id = denoiser.embed.weight.device, denoiser.config.mask_id
    assert mask_id is not None
    tokens_BL, length_B = lay_out([[*asked[row.place].context, *asked[row.place].tokens] for row in rows], 0, 0)
    start_B = torch.tensor([len(asked[row.place].context) for row in rows])
    wanted_BW = torch.nn.utils.rnn.pad_sequence([row.masked_R for row in rows], batch_first=True)
    position_BW = (start_B[:, None] + torch.arange(wanted_BW.shape[1])).clamp(max=tokens_BL.shape[1] - 1)
    sequence_M, place_M = wanted_BW.nonzero(as_tuple=True)
    target_M = tokens_BL[sequence_M, position_BW[sequence_M, place_M]]
    tokens_BL[sequence_M, position_BW[sequence_M, place_M]] = mask_id
    on_device = tokens_BL.to(device), length_B.to(device), position_BW.to(device), wanted_BW.to(device)
    canvas = Canvas(*on_device, first=True)
    cross_entropy_M = token_cross_entropy(predict(canvas), target_M.to(device)).double().cpu()
    return torch.zeros(len(rows), dtype=torch.float64).index_add(0, sequence_M, cross_entropy_M).tolist()


def _greedy(predict: Predict, denoiser: Denoiser, asked: Sequence[Continued], batch: int) -> list[bool]:
    """For each continuation, true if it is what is decoded, one token per call; stops at the first other token."""
    same, device, mask_id = [True] * len(asked), denoiser.embed.weight.device, denoiser.config.mask_id
    assert mask_id is not None
    for length in {len(each.tokens) for each in asked} - {0}:
        members = [index for index, each in enumerate(asked) if len(each.tokens) == length]
        for part in _batches(members, batch, [len(asked[index].context) for index in members]):
            contexts = [asked[index].context for index in part]
            for fixed in decode(predict, contexts, Sampling(length=length), mask_id, device=device):
                for row, place, token in zip(*(x.tolist() for x in fixed[2:5]), strict=True):
                    each = asked[part[row]]
                    same[part[row]] &= each.tokens[place - len(each.context)] == token
                if not any(same[index] for index in part):
                    break
    return same


@torch.inference_mode()
def _causal(denoiser: Denoiser, asked: Sequence[Continued], batch: int) -> list[Likelihood]:
    """The exact likelihoods of an autoregressive model, whose sequences start with eos."""
    for each in asked:
        start = check_autoregressive(denoiser.config, [each.context], len(each.tokens))
    found: list[Likelihood] = [Likelihood(0.0, 0.0, True)] * len(asked)
    device, together = denoiser.embed.weight.device, not needs_whole_sequence(denoiser.config)
    members = [index for index, each in enumerate(asked) if each.tokens]
    for part in _batches(members, batch if together else 1, [_length(asked[index]) for index in members]):
        whole = [[start, *asked[index].context, *asked[index].tokens] for index in part]
        # Filling comes after a sequence, where causal attention doesn't look.
        tokens_BL, length_B = lay_out(whole, 0, 0)
        place_L = torch.arange(tokens_BL.shape[1] - 1)
        first_B = torch.tensor([len(asked[index].context) for index in part])
        wanted_BL = (place_L >= first_B[:, None]) & (place_L < length_B[:, None] - 1)
        logits_MV, _ = denoiser(tokens_BL[:, :-1].to(device), wanted_BL.to(device))
        target_M = tokens_BL[:, 1:][wanted_BL]
        log_p_M = -token_cross_entropy(logits_MV, target_M.to(device)).double().cpu()
        right_M, sequence_M = logits_MV.argmax(-1).cpu() == target_M, wanted_BL.nonzero()[:, 0]
        for row, index in enumerate(part):
            own_M = sequence_M == row
            found[index] = Likelihood(math.fsum(log_p_M[own_M].tolist()), 0.0, bool(right_M[own_M].all()))
    return found
