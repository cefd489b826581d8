"""Batches of pairs: a chosen and a rejected response to one prompt.

Shapes: P pairs, 2 sides (chosen, rejected), n draws of timestep and mask; a batch's rows are in this order.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.config.run import RunConfig
from core.data.batches import TrainBatches, router_timestep, rows_of, validation_rows
from core.data.corpus import Corpus
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.objective import objective_of
from core.model.block_schedule import block_length_at
from core.runtime.random_streams import numpy_stream, torch_stream

Draw = Callable[[Tensor], Masking]  # the masks of one response's rows, by where it may be masked: (n, L) bool


class PreferenceBatches(TrainBatches):
    """An endless sequence of batches of pairs; `batch_size` counts pairs, each of 2 n sequences.

    A response's n timesteps are stratified. Policy and reference see the same batch (VRPO, arXiv 2505.19223, Sec. 3.3).
    """

    def micro_batches(self, step: int) -> list[Batch]:
        config, size = self.config, self.config.trainer.batch_size
        starts = [self._start(index) for index in range(step * size, (step + 1) * size)]
        tokens_PSL, maskable_PSL = _pairs(self.corpus, starts, config.data.sequence_length, held_out=False)
        noise, objective, length = self._noise(step), config.objective, config.data.sequence_length
        masking = _masked(
            maskable_PSL, objective.draws, lambda nL: self.objective.mask(objective.draws, length, noise, nL)
        )
        router_timestep_B = router_timestep(
            masking, config.model.router.sees, torch_stream(config.seed, "told timesteps", step)
        )
        block_length = block_length_at(config, step)
        return [
            _batch(tokens_PSL, masking, router_timestep_B, rows, objective.draws, block_length) for rows in self.rows
        ]


def validation_pairs(config: RunConfig, corpus: Corpus, *, rank: int, world_size: int) -> list[Batch]:
    """Held-out pairs, each response with n exact mask counts stratified over its length: the same at every validation."""
    length, draws = config.data.sequence_length, config.objective.draws
    available = len(corpus.validation_T) // (2 * length)
    chosen = numpy_stream(config.seed, "validation sequences").permutation(available)[
        : config.data.validation_sequences
    ]
    tokens_PSL, maskable_PSL = _pairs(corpus, [2 * length * int(i) for i in chosen], length, held_out=True)
    noise = torch_stream(config.seed, "validation masks")
    masking = _masked(maskable_PSL, draws, lambda nL: objective_of(config).mask_validation(draws, length, noise, nL))
    router_timestep_B = router_timestep(
        masking, config.model.router.sees, torch_stream(config.seed, "told validation timesteps")
    )
    rows = validation_rows(len(chosen), config.trainer.batch_size, rank, world_size)
    return [_batch(tokens_PSL, masking, router_timestep_B, part, draws, None) for part in rows]


def _pairs(corpus: Corpus, starts: list[int], length: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Tokens and where they may be masked, (P, 2, L) each."""
    tokens_T, maskable_T = (
        (corpus.validation_T, corpus.validation_maskable_T) if held_out else (corpus.train_T, corpus.train_maskable_T)
    )
    assert maskable_T is not None  # core.training.checks refuses what marks no responses
    tokens_PX, maskable_PX = (rows_of(values_T, starts, 2 * length) for values_T in (tokens_T, maskable_T))
    return (
        torch.from_numpy(tokens_PX.astype(np.int64)).unflatten(1, (2, length)),
        torch.from_numpy(maskable_PX).unflatten(1, (2, length)),
    )


def _masked(maskable_PSL: Tensor, draws: int, draw: Draw) -> Masking:
    """The masks of all rows, response by response."""
    parts = [draw(maskable_L.expand(draws, -1)) for maskable_L in maskable_PSL.flatten(0, 1)]
    return Masking(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _batch(
    tokens_PSL: Tensor, masking: Masking, router_timestep_B: Tensor, pairs: slice, draws: int, block_length: int | None
) -> Batch:
    tokens_BL = tokens_PSL[pairs].repeat_interleave(draws, 1).flatten(0, 1)
    own = (column.unflatten(0, (-1, 2 * draws))[pairs].flatten(0, 1) for column in (*masking, router_timestep_B))
    *columns, router_timestep_own_B = own
    return Batch.of(tokens_BL, Masking(*columns), router_timestep_own_B, block_length=block_length)
