"""Batches as a pure function of (seed, step): resumable, and the same for every arm of a block."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.config import RunConfig
from core.data.corpora import Corpus, load
from core.diffusion.masking import Masking, mask_tokens, mask_validation
from core.streams import numpy_stream, torch_stream


class Batch(NamedTuple):
    """Clean tokens and how they are masked. tokens_BL int64; masking as in core.diffusion.masking."""

    tokens_BL: Tensor
    masking: Masking


class TrainBatches:
    """An endless, restartable sequence of training batches: batch number `step` depends on the seed and `step` alone."""

    def __init__(self, config: RunConfig, corpus: Corpus, first_step: int = 0) -> None:
        self.config, self.corpus, self.first_step = config, corpus, first_step
        length = config.data.sequence_length
        spare = 0 if corpus.aligned else 1  # an unaligned epoch starts at a random offset below one sequence
        self.sequences = len(corpus.train_T) // length - spare
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __iter__(self) -> Iterator[Batch]:
        step = self.first_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The batch of that step: every sequence once an epoch, in an order and at an offset new in each epoch."""
        size, length = self.config.trainer.batch_size, self.config.data.sequence_length
        rows = []
        for index in range(step * size, (step + 1) * size):
            epoch, place = divmod(index, self.sequences)
            starts = self._order(epoch)
            rows.append(self.corpus.train_T[starts[place] : starts[place] + length])
        tokens_BL = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(tokens_BL, mask_tokens(size, length, self.config.objective, self._noise(step)))

    def _draw_order(self, epoch: int) -> np.ndarray:
        rng = numpy_stream(self.config.seed, "data order", epoch)
        length = self.config.data.sequence_length
        offset = 0 if self.corpus.aligned else int(rng.integers(length))
        return offset + length * rng.permutation(self.sequences)

    def _noise(self, step: int) -> torch.Generator:
        return torch_stream(self.config.seed, "masks", step)


class MaskedTextModule(lightning.LightningDataModule):
    """The batches of one run: an endless training sequence, and a validation set drawn once per seed."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.corpus = load(config.data)

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self.config, self.corpus)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out sequences with exact mask counts, stratified over the counts: the same at every validation."""
        data, seed = self.config.data, self.config.seed
        available = len(self.corpus.validation_T) // data.sequence_length
        chosen = numpy_stream(seed, "validation sequences").permutation(available)[: data.validation_sequences]
        rows_NL = self.corpus.validation_T[: available * data.sequence_length].reshape(available, -1)[chosen]
        tokens_NL = torch.from_numpy(rows_NL.astype(np.int64))
        masking = mask_validation(len(tokens_NL), data.sequence_length, torch_stream(seed, "validation masks"))
        size = self.config.trainer.batch_size
        batches = [
            Batch(tokens_NL[i : i + size], Masking(*(part[i : i + size] for part in masking)))
            for i in range(0, len(tokens_NL), size)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list would count as several loaders
