"""Training batches as a pure function of (seed, step): resumable, and the same for every arm of a block on any ranks."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from core.config.run import RunConfig
from core.data.corpora import parts_of
from core.data.corpus import Corpus, Part
from core.data.mixtures import Draws
from core.data.shards import Shards
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.objective import objective_of
from core.errors import UserError
from core.model.block_schedule import block_length_at
from core.runtime.random_streams import numpy_stream, torch_stream


def router_timestep(masking: Masking, sees: str, generator: torch.Generator) -> Tensor:
    """The timestep that routers are told of each sequence of a whole batch: (B,) fp32.

    "timestep" is t, "mask_ratio" the share that is masked, "shuffled" another's t (nothing to learn), "constant" 0.5.
    """
    timestep_B = masking.timestep_B
    if sees == "shuffled":
        return timestep_B[torch.randperm(len(timestep_B), generator=generator)]
    if sees == "constant":
        return torch.full_like(timestep_B, 0.5)
    return masking.ratio_B if sees == "mask_ratio" else timestep_B


class TrainBatches:
    """An endless, restartable sequence of training batches: batch number `step` depends on the seed and `step` alone.

    Each row of a mixture is of a part drawn with the parts' weights, and takes that part's next sequence.
    Of several ranks each takes its own rows of the one global batch: no two share a row, and any number of ranks see
    the same data. Raises UserError when the batch can't be split evenly.
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, first_step: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config, self.corpus, self.first_step = config, corpus, first_step
        self.objective = objective_of(config)
        micro, trainer = world_size * config.trainer.accumulate, config.trainer
        if trainer.batch_size % micro:
            raise UserError(
                f"trainer.batch_size={trainer.batch_size} can't be split over {world_size} devices"
                + (f" in {trainer.accumulate} micro-batches" if trainer.accumulate > 1 else "")
                + f": use a multiple of {micro}"
            )
        share = trainer.batch_size // micro
        places = range(rank, micro, world_size)
        self.rows = [slice(place * share, (place + 1) * share) for place in places]  # of each micro-batch
        self.parts = parts_of(config.data, corpus)
        self.sequences = sum(map(self._sequences, self.parts))
        self.draws = Draws(config.seed, [part.weight for part in corpus.parts]) if corpus.parts else None
        self._order = lru_cache(maxsize=2 * len(self.parts))(self._draw_order)

    def __iter__(self) -> Iterator[Batch]:
        step = self.first_step
        while True:
            yield from self.micro_batches(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The first of that step's micro-batches: all of the rank's rows where gradients aren't accumulated."""
        return self.micro_batches(step)[0]

    def micro_batches(self, step: int) -> list[Batch]:
        """The rank's rows of that step: every sequence once an epoch, in an order and at an offset new in each epoch."""
        size, length = self.config.trainer.batch_size, self.length(step)
        starts = [self._start(index) for index in range(step * size, (step + 1) * size)]
        maskable_T = self.corpus.train_maskable_T
        maskable_BL = None if maskable_T is None else torch.from_numpy(rows_of(maskable_T, starts, length))
        # Masks are drawn for the whole batch, whichever rows are wanted: the draw may not depend on the ranks.
        masking = self.objective.mask(size, length, self._noise(step), maskable_BL)
        router_timestep_B = router_timestep(
            masking, self.config.model.router.sees, torch_stream(self.config.seed, "told timesteps", step)
        )
        segments_BL = segments_of(self.corpus.train_segments_T, starts, length)
        batches = []
        for rows in self.rows:
            tokens_BL = torch.from_numpy(rows_of(self.corpus.train_T, starts[rows], length).astype(np.int64))
            own, block_length = Masking(*(part[rows] for part in masking)), block_length_at(self.config, step)
            batch = Batch.of(tokens_BL, own, router_timestep_B[rows], block_length=block_length)
            if segments_BL is not None and maskable_BL is not None:
                share = len(tokens_BL) / size
                divisors = int(segments_BL.amax(1).sum()) * share, int((segments_BL > 0).sum()) * share
                batch = batch.with_conversations(segments_BL[rows], maskable_BL[rows], *divisors)
            batches.append(batch)
        return batches

    def length(self, step: int) -> int:
        """The length of the step's batch: full, or on a configured share of the steps l ~ U[min, full]."""
        data = self.config.data
        if not data.variable_length_share:
            return data.sequence_length
        rng = numpy_stream(self.config.seed, "lengths", step)
        short = rng.random() < data.variable_length_share
        drawn = int(rng.integers(data.variable_length_min, data.sequence_length, endpoint=True))
        return drawn if short else data.sequence_length

    def _start(self, index: int) -> int:
        part, index = (0, index) if self.draws is None else self.draws(index)
        epoch, place = divmod(index, self._sequences(self.parts[part]))
        return sum(before.train for before in self.parts[:part]) + int(self._order(epoch, part)[place])

    def _sequences(self, part: Part) -> int:
        spare = 0 if self.corpus.aligned else 1  # an unaligned epoch starts at a random offset below one sequence
        return part.train // (self.corpus.rows * self.config.data.sequence_length) - spare

    def _draw_order(self, epoch: int, part: int = 0) -> np.ndarray:
        names = () if self.draws is None else (self.parts[part].name,)
        rng = numpy_stream(self.config.seed, "data order", epoch, *names)
        length = self.corpus.rows * self.config.data.sequence_length
        offset = 0 if self.corpus.aligned else int(rng.integers(length))
        return offset + length * rng.permutation(self._sequences(self.parts[part]))

    def _noise(self, step: int) -> torch.Generator:
        return torch_stream(self.config.seed, "masks", step)


def validation_rows(count: int, size: int, rank: int, world_size: int) -> list[slice]:
    """A rank's rows of each validation batch: none, where it has too few."""
    return [slice(start + rank, min(start + size, count), world_size) for start in range(0, count, size)]


def rows_of(values_T: np.ndarray | Shards, starts: list[int], length: int) -> np.ndarray:
    """As many values from each start on. Returns (N, length)."""
    return np.stack([values_T[start : start + length] for start in starts])


def segments_of(segments_T: np.ndarray | None, starts: list[int], length: int) -> Tensor | None:
    return None if segments_T is None else torch.from_numpy(rows_of(segments_T, starts, length).astype(np.int64))
