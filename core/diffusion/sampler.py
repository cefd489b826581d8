"""Decoding with a denoiser: fully parallel, or block after block, a few tokens of a block in each network call.

Shapes as in core.diffusion.sampling.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.diffusion.sampling import Canvas, Fixed, Predict, Sampled, Sampling
from core.diffusion.unmasking import choose_confident, choose_count, draw_tokens, score_positions, step_counts
from core.errors import require
from core.runtime.random_streams import torch_stream


def lay_out(
    prompts: Sequence[Sequence[int]], length: int, fill: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Prompts, each followed by `length` tokens of `fill`, then by zeros up to the longest. Returns (B, L), (B,)."""
    length_B = torch.tensor([len(prompt) + length for prompt in prompts])
    tokens_BL = torch.zeros(len(prompts), int(length_B.max()), dtype=torch.int64)
    for row_L, prompt in zip(tokens_BL, prompts, strict=True):
        row_L[: len(prompt)] = torch.as_tensor(prompt, dtype=torch.int64)
        row_L[len(prompt) : len(prompt) + length] = fill
    return tokens_BL.to(device), length_B.to(device)


def decode(
    predict: Predict,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    mask_id: int,
    *,
    streams: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    aligned: int | None = None,
) -> Iterator[Fixed]:
    """Decode a response to each prompt, telling after each network call which tokens it fixed.

    A mask in a prompt is decoded with the response: blocks are of masks, in order, and the steps are split over the blocks of
    the sequence that has most. streams: what a sequence's random numbers are named after beside the seed (its place in the
    batch, unless given): they depend on nothing else, so that a sequence is decoded alike in any batch. aligned: the block
    length of a network with blocks, which count from a sequence's first token on; the prompt may fill a part of one.
    """
    tokens_BL, length_B = lay_out(prompts, settings.length, mask_id, device)
    given_BL = (tokens_BL != mask_id) | (torch.arange(tokens_BL.shape[1], device=device) >= length_B[:, None])
    guided = _guided(predict, given_BL, settings.guidance, mask_id)
    generators = random_streams(settings.seed, range(len(prompts)) if streams is None else streams, device)
    holes_BH = given_BL.long().argsort(dim=1, stable=True)[:, : int((~given_BL).sum(1).max())]
    real_BH = torch.arange(holes_BH.shape[1], device=device) < (~given_BL).sum(1)[:, None]
    blocks, step = _blocks(holes_BH, real_BH, settings.block_length, aligned), 0
    require(
        settings.steps is None or settings.steps >= len(blocks),
        f"steps={settings.steps} are fewer than the {len(blocks)} blocks of the masks in prompt and response",
    )
    for block, (position_BW, wanted_BW) in enumerate(blocks):
        count_BS = step_counts(wanted_BW.sum(1), _steps_of(block, len(blocks), position_BW.shape[1], settings))
        for call in range(position_BW.shape[1]):
            if not wanted_BW.any():
                break
            canvas = Canvas(tokens_BL, length_B, position_BW, wanted_BW, call == 0)
            count_B = None if settings.threshold is not None else count_BS[:, call]
            fixed, chosen_BW = _fix(guided(canvas), canvas, count_B, settings, mask_id, generators)
            tokens_BL[fixed.sequence_M, fixed.position_M] = fixed.token_M
            wanted_BW = wanted_BW & ~chosen_BW
            yield fixed._replace(step=step, block=block)
            step += 1


def random_streams(seed: int, streams: Sequence[int], device: str | torch.device) -> list[torch.Generator]:
    """Generators of sequences, by what their random numbers are named after."""
    return [torch_stream(seed, "sampling", name, device=device) for name in streams]


def _blocks(holes_BH: Tensor, real_BH: Tensor, size: int | None, aligned: int | None) -> list[tuple[Tensor, Tensor]]:
    """The masks' positions block by block, (B, W), and which of them there are, (B, W) bool."""
    if aligned is None:
        size = size or max(1, holes_BH.shape[1])
        parts = [slice(start, start + size) for start in range(0, holes_BH.shape[1], size)]
        return [(holes_BH[:, part], real_BH[:, part].clone()) for part in parts]
    block_BH = holes_BH.div(aligned, rounding_mode="floor")
    block_BH = block_BH - block_BH[:, :1]  # of each sequence's first one with a mask
    blocks = []
    for block in range(int(block_BH.masked_fill(~real_BH, -1).max()) + 1 if block_BH.numel() else 0):
        member_BH = real_BH & (block_BH == block)
        order_BW = (~member_BH).long().argsort(dim=1, stable=True)[:, : int(member_BH.sum(1).max())]
        if order_BW.shape[1]:
            blocks.append((holes_BH.gather(1, order_BW), member_BH.gather(1, order_BW)))
    return blocks


def _steps_of(block: int, blocks: int, size: int, settings: Sampling) -> int:
    if settings.steps is None:
        return size
    return min(size, settings.steps // blocks + (block < settings.steps % blocks))


def _fix(
    logits_MV: Tensor,
    canvas: Canvas,
    count_B: Tensor | None,
    settings: Sampling,
    mask_id: int,
    generators: Sequence[torch.Generator],
) -> tuple[Fixed, Tensor]:
    """Fix tokens by one call's logits; returns them and their positions in the block, (B, W) bool."""
    # A mask is never the answer (MDLM's zero masking probabilities, arXiv 2406.07524).
    never = torch.tensor([mask_id], device=logits_MV.device)
    logits_MV = logits_MV.double().index_fill(-1, never, -torch.inf)
    log_probs_MV, rows_B = logits_MV.log_softmax(-1), canvas.wanted_BW.sum(1).tolist()
    token_M = draw_tokens(logits_MV, settings.temperature, generators, rows_B)
    score_M = score_positions(log_probs_MV, token_M, settings.remasking, generators, rows_B)
    score_BW = score_M.new_zeros(canvas.wanted_BW.shape)
    score_BW[canvas.wanted_BW] = score_M
    if count_B is not None:
        chosen_BW = choose_count(score_BW, canvas.wanted_BW, count_B)
    else:
        assert settings.threshold is not None
        chosen_BW = choose_confident(score_BW, canvas.wanted_BW, settings.threshold, settings.low_threshold)
    chosen_M = chosen_BW[canvas.wanted_BW]
    confidence_M = log_probs_MV[chosen_M].gather(-1, token_M[chosen_M, None])[:, 0].exp()
    sequence_M = chosen_BW.nonzero()[:, 0]
    return Fixed(0, 0, sequence_M, canvas.position_BW[chosen_BW], token_M[chosen_M], confidence_M), chosen_BW


def _guided(predict: Predict, given_BL: Tensor, scale: float, mask_id: int) -> Predict:
    """Classifier-free guidance: each sequence beside itself with all that was given to it masked."""
    if not scale:
        return predict

    def both(canvas: Canvas) -> Tensor:
        blind_BL = canvas.tokens_BL.masked_fill(given_BL, mask_id)
        length_B, position_BW, wanted_BW = (torch.cat([part, part]) for part in canvas[1:4])
        tokens_BL = torch.cat([canvas.tokens_BL, blind_BL])
        logits_MV = predict(Canvas(tokens_BL, length_B, position_BW, wanted_BW, canvas.first)).double()
        conditional_MV, blind_MV = logits_MV.chunk(2)
        return blind_MV + (scale + 1) * (conditional_MV - blind_MV)

    return both


def sample(
    predict: Predict,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    mask_id: int,
    *,
    streams: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    aligned: int | None = None,
) -> Sampled:
    """Decode a response to each prompt, as `decode` does."""
    events = decode(predict, prompts, settings, mask_id, streams=streams, device=device, aligned=aligned)
    return collect(events, prompts, settings.length, calls=2 if settings.guidance else 1)


def collect(events: Iterator[Fixed], prompts: Sequence[Sequence[int]], length: int, *, calls: int = 1) -> Sampled:
    """Collect a stream of fixed tokens into responses; calls: network calls per step."""
    tokens_BL, length_B = lay_out(prompts, length, 0)
    step_BL = torch.full_like(tokens_BL, -1)
    confidence_BL = torch.full(tokens_BL.shape, torch.nan, dtype=torch.float64)
    nfe_B = torch.zeros(len(prompts), dtype=torch.int64)
    for fixed in events:
        sequence_M, position_M = fixed.sequence_M.cpu(), fixed.position_M.cpu()
        tokens_BL[sequence_M, position_M] = fixed.token_M.cpu()
        step_BL[sequence_M, position_M] = fixed.step
        confidence_BL[sequence_M, position_M] = fixed.confidence_M.double().cpu()
        nfe_B[sequence_M.unique()] += calls  # every call fixes a token of each sequence that it was made for
    return Sampled(tokens_BL, length_B, step_BL, confidence_BL, nfe_B)
