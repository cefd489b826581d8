"""Lightning data module of a run: its training and validation batches, and its held-out sequences."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.config.run import RunConfig
from core.data.batches import TrainBatches, router_timestep, rows_of, segments_of, validation_rows
from core.data.corpora import check_held_out, held_out_starts, load
from core.data.corpus import Corpus
from core.data.preferences import PreferenceBatches, validation_pairs
from core.data.synthetic import posterior_nelbo
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.objective import objective_of
from core.runtime.lightning_import import lightning
from core.runtime.random_streams import torch_stream


def held_out(config: RunConfig, count: int) -> tuple[Tensor, Tensor | None]:
    """The first held-out sequences of a run, in its seed's order: what validates it, as far as that goes.

    Returns tokens (N, L) int64, and which of them may be masked (N, L), or None where all may. Raises UserError where fewer
    are held out, and where sequences are packed, which only training knows to keep apart.
    """
    check_held_out(config, count)
    held = _held_out(config, load(config.data), count)
    return held.tokens_NL, held.maskable_NL


class _HeldOut(NamedTuple):
    """Held-out sequences; which of their tokens may be masked, which part of a mixture each is of, and packed segments."""

    tokens_NL: Tensor
    maskable_NL: Tensor | None
    domain_N: Tensor | None
    segments_NL: Tensor | None


def _held_out(config: RunConfig, corpus: Corpus, count: int) -> _HeldOut:
    length = config.data.sequence_length
    starts, domains = held_out_starts(config, corpus, count)
    domain_N = None if domains is None else torch.from_numpy(domains)
    tokens_NL = torch.from_numpy(rows_of(corpus.validation_T, starts, length).astype(np.int64))
    maskable_T = corpus.validation_maskable_T
    maskable_NL = None if maskable_T is None else torch.from_numpy(rows_of(maskable_T, starts, length))
    return _HeldOut(tokens_NL, maskable_NL, domain_N, segments_of(corpus.validation_segments_T, starts, length))


class MaskedTextModule(lightning.LightningDataModule):
    """The batches of one run: an endless training sequence, and a validation set drawn once per seed."""

    def __init__(self, config: RunConfig, first_step: int = 0, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.config, self.first_step, self.rank, self.world_size = config, first_step, rank, world_size
        self.corpus = load(config.data)

    def train_dataloader(self) -> TrainBatches:
        batches = PreferenceBatches if self.config.objective.traits.pairs else TrainBatches
        return batches(self.config, self.corpus, self.first_step, rank=self.rank, world_size=self.world_size)

    def floor(self) -> float | None:
        """The NELBO of an exact denoiser on the validation masks, nats per token; None where the source isn't known.

        A causal model's is the mean exact negative log-likelihood of the validation sequences.
        """
        source, batches = self.corpus.source, MaskedTextModule(self.config).val_dataloader()
        if source is None:
            return None
        nelbo = []
        for batch in batches:
            tokens_BL, masked_BL = batch.tokens_BL.numpy(), batch.masking.masked_BL.numpy()
            if self.config.objective.traits.causal:
                nelbo.append(-source.log_probability(tokens_BL) / tokens_BL.shape[1])
            else:
                nelbo.append(posterior_nelbo(source, tokens_BL, masked_BL, self.config.model.block_length))
        return float(np.concatenate(nelbo).mean())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out sequences with exact mask counts, stratified over the counts: the same at every validation.

        Every rank has as many batches, each with the rank's rows of the one batch: none, where it has too few.
        """
        of_rows = validation_pairs if self.config.objective.traits.pairs else _validation_batches
        batches = of_rows(self.config, self.corpus, rank=self.rank, world_size=self.world_size)
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list would count as several loaders


def _validation_batches(config: RunConfig, corpus: Corpus, *, rank: int, world_size: int) -> list[Batch]:
    held = _held_out(config, corpus, config.data.validation_sequences)
    tokens_NL, maskable_NL, domain_N, segments_NL = held
    noise = torch_stream(config.seed, "validation masks")
    masking = objective_of(config).mask_validation(len(tokens_NL), tokens_NL.shape[1], noise, maskable_NL)
    timesteps = torch_stream(config.seed, "told validation timesteps")
    router_timestep_N = router_timestep(masking, config.model.router.sees, timesteps)
    batches = []
    for part in validation_rows(len(tokens_NL), config.trainer.batch_size, rank, world_size):
        own, domain_B = Masking(*(column[part] for column in masking)), None if domain_N is None else domain_N[part]
        batch = Batch.of(tokens_NL[part], own, router_timestep_N[part], domain_B)
        if segments_NL is not None and maskable_NL is not None:
            batch = batch.with_conversations(segments_NL[part], maskable_NL[part], 1.0)
        batches.append(batch)
    return batches
