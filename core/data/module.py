"""Batches as a pure function of (seed, step): resumable, the same for every arm of a block and on any number of ranks."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.config.run import RunConfig
from core.data.conversations import Packed, conversations, locate, real_tokens
from core.data.corpora import Corpus, load, parts_of
from core.data.held_out import check_held_out, held_out_starts
from core.data.mixtures import Draws, Part
from core.data.shards import Shards
from core.data.synthetic import posterior_nelbo
from core.diffusion.masking import Masking, mask_tokens, mask_validation
from core.errors import UserError
from core.model.block_schedule import block_length_at
from core.runtime.lightning_import import lightning
from core.runtime.random_streams import numpy_stream, torch_stream


class Batch(NamedTuple):
    """Clean tokens and how they are masked.

    tokens_BL: int64. masking as in core.diffusion.masking. index_M: positions of the masked tokens in the flattened
    (B L,) batch: found here, on the host, so that the device never has to say how many there are. told_B: the timestep
    that routers are told. domain_B: which part of a mixture each sequence is of, in validation. packed: the
    conversations of its sequences, where those are packed. block_length: of block diffusion at this step; None: the
    network's own, if any.
    """

    tokens_BL: Tensor
    masking: Masking
    index_M: Tensor
    told_B: Tensor
    domain_B: Tensor | None = None
    packed: Packed | None = None
    block_length: int | None = None

    @classmethod
    def of(
        cls,
        tokens_BL: Tensor,
        masking: Masking,
        told_B: Tensor | None = None,
        domain_B: Tensor | None = None,
        block_length: int | None = None,
    ) -> "Batch":
        told_B = masking.timestep_B if told_B is None else told_B
        index_M = masking.masked_BL.flatten().nonzero()[:, 0]
        return cls(tokens_BL, masking, index_M, told_B, domain_B, block_length=block_length)

    def with_conversations(
        self, segments_BL: Tensor, response_BL: Tensor, denominator: float, tokens: float | None = None
    ) -> "Batch":
        """The same of packed sequences."""
        return self._replace(packed=locate(segments_BL, response_BL, self.index_M, denominator, tokens))

    @property
    def real_tokens(self) -> Tensor | None:
        """What sums over the tokens of packed sequences are divided by; None where every token is somebody's."""
        return None if self.packed is None else self.packed.tokens

    def mean(self, nelbo_B: Tensor) -> Tensor:
        """The mean over sequences, or over conversations: this micro-batch's part of the step's loss."""
        return nelbo_B.mean() if self.packed is None else nelbo_B.sum() / self.packed.denominator


def told(masking: Masking, sees: str, generator: torch.Generator) -> Tensor:
    """The timestep that routers are told of each sequence of a whole batch: (B,) fp32.

    "timestep" is t, "mask_ratio" the share that is masked, "shuffled" another sequence's t (as much to learn from, and
    nothing to learn), "constant" a half.
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
        masking = mask_tokens(size, length, self.config.objective, self._noise(step), maskable_BL)
        told_B = told(masking, self.config.model.router.sees, torch_stream(self.config.seed, "told timesteps", step))
        segments_BL = _segments(self.corpus.train_segments_T, starts, length)
        batches = []
        for rows in self.rows:
            tokens_BL = torch.from_numpy(rows_of(self.corpus.train_T, starts[rows], length).astype(np.int64))
            own, block_length = Masking(*(part[rows] for part in masking)), block_length_at(self.config, step)
            batch = Batch.of(tokens_BL, own, told_B[rows], block_length=block_length)
            if segments_BL is not None and maskable_BL is not None:
                share = len(tokens_BL) / size
                divisors = int(conversations(segments_BL).sum()) * share, real_tokens(segments_BL) * share
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


def rows_of(values_T: np.ndarray | Shards, starts: list[int], length: int) -> np.ndarray:
    """As many values from each start on. Returns (N, length)."""
    return np.stack([values_T[start : start + length] for start in starts])


def _segments(segments_T: np.ndarray | None, starts: list[int], length: int) -> Tensor | None:
    return None if segments_T is None else torch.from_numpy(rows_of(segments_T, starts, length).astype(np.int64))


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
    return _HeldOut(tokens_NL, maskable_NL, domain_N, _segments(corpus.validation_segments_T, starts, length))


class MaskedTextModule(lightning.LightningDataModule):
    """The batches of one run: an endless training sequence, and a validation set drawn once per seed."""

    def __init__(self, config: RunConfig, first_step: int = 0, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.config, self.first_step, self.rank, self.world_size = config, first_step, rank, world_size
        self.corpus = load(config.data)

    def train_dataloader(self) -> TrainBatches:
        if self.config.objective.kind == "vrpo":
            from core.data.preferences import PreferenceBatches

            return PreferenceBatches(
                self.config, self.corpus, self.first_step, rank=self.rank, world_size=self.world_size
            )
        return TrainBatches(self.config, self.corpus, self.first_step, rank=self.rank, world_size=self.world_size)

    def floor(self) -> float | None:
        """The NELBO of an exact denoiser on the validation masks, nats per token; None where the source isn't known.

        An autoregressive model's is the mean exact negative log-likelihood of the validation sequences.
        """
        source, batches = self.corpus.source, MaskedTextModule(self.config).val_dataloader()
        if source is None:
            return None
        nelbo = []
        for batch in batches:
            tokens_BL, masked_BL = batch.tokens_BL.numpy(), batch.masking.masked_BL.numpy()
            if self.config.objective.kind == "autoregressive":
                nelbo.append(-source.log_probability(tokens_BL) / tokens_BL.shape[1])
            else:
                nelbo.append(posterior_nelbo(source, tokens_BL, masked_BL, self.config.model.block_length))
        return float(np.concatenate(nelbo).mean())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out sequences with exact mask counts, stratified over the counts: the same at every validation.

        Every rank has as many batches, each with the rank's rows of the one batch: none, where it has too few.
        """
        if self.config.objective.kind == "vrpo":
            from core.data.preferences import validation_pairs

            return validation_pairs(self.config, self.corpus, rank=self.rank, world_size=self.world_size)
        seed = self.config.seed
        held = _held_out(self.config, self.corpus, self.config.data.validation_sequences)
        tokens_NL, maskable_NL, domain_N, segments_NL = held
        noise = torch_stream(seed, "validation masks")
        masking = mask_validation(
            len(tokens_NL), tokens_NL.shape[1], noise, maskable_NL, kind=self.config.objective.kind
        )
        told_N = told(masking, self.config.model.router.sees, torch_stream(seed, "told validation timesteps"))
        size = self.config.trainer.batch_size
        parts = [slice(i, min(i + size, len(tokens_NL))) for i in range(0, len(tokens_NL), size)]
        rows = [slice(part.start + self.rank, part.stop, self.world_size) for part in parts]
        batches = [
            Batch.of(
                tokens_NL[part],
                Masking(*(column[part] for column in masking)),
                told_N[part],
                None if domain_N is None else domain_N[part],
            )
            for part in rows
        ]
        if segments_NL is not None and maskable_NL is not None:
            batches = [
                batch.with_conversations(segments_NL[part], maskable_NL[part], 1.0)
                for batch, part in zip(batches, rows, strict=True)
            ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list would count as several loaders
