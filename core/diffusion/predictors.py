"""Denoisers as the sampler asks them: any function of tokens, a network with or without cache.

Shapes as in core.diffusion.sampling; G of the B sequences have one length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.config.model import ModelConfig
from core.diffusion.sampling import Caching, Canvas, Predict
from core.errors import UserError
from core.model.attention import Store, Window, new_stores
from core.model.transformer import Denoiser


def from_function(denoise: Callable[[Tensor], Tensor]) -> Predict:
    """The predictor of a function from tokens (G, L), masks in place, to logits (G, L, V).

    It is called with sequences of one length at a time: it need not know what filling is.
    """

    def predict(canvas: Canvas) -> Tensor:
        parts = []
        for length in canvas.length_B.unique().tolist():
            rows_G = (canvas.length_B == length).nonzero()[:, 0]
            logits_GLV = denoise(canvas.tokens_BL[rows_G, :length])
            sequence_M, place_M = canvas.wanted_BW[rows_G].nonzero(as_tuple=True)
            parts.append((rows_G[sequence_M], logits_GLV[sequence_M, canvas.position_BW[rows_G][sequence_M, place_M]]))
        sequence_M, logits_MV = (torch.cat(part) for part in zip(*parts, strict=True))
        return logits_MV[sequence_M.argsort(stable=True)]

    return predict


@dataclass
class NetworkPredictor:
    """The predictor of a network; it computes logits of what is wanted only.

    Routers are told the share of a sequence's own tokens that is masked, as timestep and as mask ratio. cache: "prefix" keeps
    the keys and values of what comes before the active block from the block's first call on, "dual" those of all that is
    outside it (Fast-dLLM, arXiv 2505.22618, Sec. 3.2). Both approximate: kept keys and values don't see what the block has
    become. Of a network with blocks both keep those of the blocks before, which are exact, and compute nothing after. Raises
    UserError for a router that would have to see the whole sequence.
    """

    denoiser: Denoiser
    cache: Caching = "none"
    stores: list[Store] = field(default_factory=list, init=False, repr=False)
    kept_BL: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)  # whose keys are stored

    def __post_init__(self) -> None:
        model = self.denoiser.config
        if self.cache != "none" and needs_whole_sequence(model):
            raise UserError(
                f"cache={self.cache} computes a part of the sequence, and model.router.kind={model.router.kind} routes "
                "tokens by all of it: use cache=none"
            )

    @torch.inference_mode()
    def __call__(self, canvas: Canvas) -> Tensor:
        uneven = bool((canvas.length_B < canvas.tokens_BL.shape[1]).any())
        if uneven and needs_whole_sequence(self.denoiser.config):
            return from_function(lambda tokens_GL: self.denoiser(tokens_GL)[0])(canvas)
        # Where the states are, in the pass, that predict the block's tokens.
        place_BW = self.denoiser.source(canvas.position_BW, canvas.tokens_BL.shape[1])
        if self.cache != "none" and self.denoiser.config.block_length is not None:
            own_BW, extent = self._changed(canvas, self.denoiser.config.block_length)
            states_BWD, place_BW = self._pass(canvas, own_BW, uneven, extent), place_BW - own_BW[:, :1]
        elif self.cache == "dual" and not canvas.first:
            shifted, own_BW = self.denoiser.config.shifted, canvas.position_BW
            states_BWD = self._pass(canvas, torch.cat([place_BW, own_BW], 1) if shifted else own_BW, uneven)
            place_BW = torch.arange(own_BW.shape[1], device=own_BW.device).expand_as(own_BW)
        elif self.cache == "prefix" and not canvas.first:
            rest_BR = _from_on(place_BW[:, :1], canvas)
            states_BWD, place_BW = self._pass(canvas, rest_BR, uneven), place_BW - rest_BR[:, :1]
        elif self.cache == "none" and not uneven:
            states_BWD = self.denoiser.hidden(canvas.tokens_BL).states_BLD
        else:
            self.stores = new_stores(self.denoiser.config, canvas.tokens_BL.shape[1])
            states_BWD = self._pass(canvas, None, uneven)
        sequence_M = canvas.wanted_BW.nonzero()[:, 0]
        return self.denoiser.logits(states_BWD[sequence_M, place_BW[canvas.wanted_BW]])

    def _changed(self, canvas: Canvas, size: int) -> tuple[Tensor, int]:
        """From the first block on whose keys aren't those of its tokens to the end of the active one, the last position
        again where others have more: (B, W); and the furthest end. Makes room where nothing fits what is kept."""
        tokens_BL, longest = canvas.tokens_BL, canvas.tokens_BL.shape[1]
        if self.kept_BL.shape != tokens_BL.shape:
            self.stores = new_stores(self.denoiser.config, longest)
            self.kept_BL = torch.full_like(tokens_BL, -1)
        start_B = canvas.position_BW[:, 0].div(size, rounding_mode="floor") * size
        end_B = (start_B + size).clamp(max=longest)
        other_BL = self.kept_BL != tokens_BL
        first_B = torch.where(other_BL.any(1), other_BL.long().argmax(1), longest)
        first_B = torch.minimum(first_B.div(size, rounding_mode="floor") * size, start_B)
        widest = torch.arange(int((end_B - first_B).max()), device=tokens_BL.device)
        own_BW = torch.minimum(first_B[:, None] + widest, end_B[:, None] - 1)
        self.kept_BL.scatter_(1, own_BW, tokens_BL.gather(1, own_BW))
        return own_BW, int(end_B.max())

    def _pass(self, canvas: Canvas, position_BW: Tensor | None, uneven: bool, extent: int | None = None) -> Tensor:
        """The states of the positions, which see all of their sequence (with blocks: up to their own): from the stores,
        where they are not computed. extent: what comes after is seen by none."""
        own_BL, size = _own(canvas), self.denoiser.config.block_length
        masks_BL = (canvas.tokens_BL == self.denoiser.config.mask_id) & own_BL
        tokens_BW = canvas.tokens_BL if position_BW is None else canvas.tokens_BL.gather(1, position_BW)
        extent = extent or canvas.tokens_BL.shape[1]
        visible = own_BL[:, :extent] if uneven else None
        if size is not None:
            place_L = torch.arange(extent, device=own_BL.device)
            row_BW1 = (place_L[None] if position_BW is None else position_BW)[:, :, None]
            before_BWL = row_BW1.div(size, rounding_mode="floor") >= place_L.div(size, rounding_mode="floor")
            visible = before_BWL & own_BL[:, None, :extent]
        window = Window(position_BW, visible, extent, self.stores)
        return self.denoiser.hidden(tokens_BW, ratio_B=masks_BL.sum(1) / canvas.length_B, window=window).states_BLD


@dataclass
class ComparedPredictor:
    """A predictor with a cache that asks one without beside it, at each call after a block's first, what caching changed.

    positions: those that were compared. distance: the sum of their total variation distances, of the probabilities with and
    without cache. changed: how many had another most likely token.
    """

    cached: Predict
    exact: Predict
    positions: int = 0
    distance: float = 0.0
    changed: int = 0

    def __call__(self, canvas: Canvas) -> Tensor:
        cached_MV = self.cached(canvas)
        if not canvas.first:
            exact_MV = self.exact(canvas)
            self.positions += len(exact_MV)
            self.distance += float((cached_MV.softmax(-1) - exact_MV.softmax(-1)).abs().sum()) / 2
            self.changed += int((cached_MV.argmax(-1) != exact_MV.argmax(-1)).sum())
        return cached_MV


def _own(canvas: Canvas) -> Tensor:
    """Mask of a sequence's own tokens, without filling. Returns (B, L) bool."""
    length = canvas.tokens_BL.shape[1]
    return torch.arange(length, device=canvas.length_B.device) < canvas.length_B[:, None]


def _from_on(first_B1: Tensor, canvas: Canvas) -> Tensor:
    """The positions from each sequence's given one to its end, the last again where others have more. Returns (B, R)."""
    last = canvas.tokens_BL.shape[1] - 1
    most = int((canvas.length_B - first_B1[:, 0]).max())
    return (first_B1 + torch.arange(most, device=first_B1.device)).clamp(max=last)


def needs_whole_sequence(model: ModelConfig) -> bool:
    """True if routing a part of a sequence would differ from routing all of it."""
    return model.num_experts > 0 and model.router.traits.sees_sequence
