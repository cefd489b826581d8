"""Common random numbers: what arms of one seed share, and what seeds don't."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.config.loading import build
from core.config.run import to_dict
from core.data.batches import TrainBatches
from core.data.module import MaskedTextModule
from core.errors import UserError

BASE = build({"data.corpus": "markov", "data.sequence_length": 32, "data.validation_sequences": 20, "seed": 3})


def same(a, b) -> bool:
    return torch.equal(a.tokens_BL, b.tokens_BL) and all(map(torch.equal, a.masking, b.masking))


def test_arms_of_a_seed_share_tokens_masks_timesteps_and_validation() -> None:
    changes = {"model.num_experts": 4, "objective.load_balancing_weight": 0, "optimizer.learning_rate": 1}
    arm = build(to_dict(BASE), changes | {"model.num_layers": 1})
    left, right = MaskedTextModule(BASE), MaskedTextModule(arm)
    for a, b in itertools.islice(zip(left.train_dataloader(), right.train_dataloader(), strict=False), 5):
        assert same(a, b)
    for a, b in zip(left.val_dataloader(), right.val_dataloader(), strict=True):
        assert same(a, b)


def test_seeds_differ_in_everything() -> None:
    a, b = (MaskedTextModule(replace(BASE, seed=seed)) for seed in (3, 4))
    x, y = a.train_dataloader().batch(0), b.train_dataloader().batch(0)
    assert not torch.equal(x.tokens_BL, y.tokens_BL)
    assert not torch.equal(x.masking.masked_BL, y.masking.masked_BL)
    v, w = next(iter(a.val_dataloader())), next(iter(b.val_dataloader()))
    assert not torch.equal(v.tokens_BL, w.tokens_BL) and not torch.equal(v.masking.masked_BL, w.masking.masked_BL)


def test_batches_can_be_taken_up_anywhere() -> None:
    module = MaskedTextModule(BASE)
    fresh = TrainBatches(BASE, module.corpus, first_step=7)
    straight = itertools.islice(module.train_dataloader(), 7, 10)
    assert all(same(a, b) for a, b in zip(fresh, straight, strict=False))


def test_an_epoch_shows_every_sequence_once_and_epochs_differ() -> None:
    data = MaskedTextModule(BASE)
    batches = TrainBatches(BASE, data.corpus)
    first, second = batches._order(0), batches._order(1)
    assert sorted(first) == list(range(0, 32 * batches.sequences, 32))
    assert not np.array_equal(first, second)
    text = TrainBatches(build({"data.sequence_length": 32}), replace(data.corpus, aligned=False))
    starts = text._order(0)
    assert len(set(starts)) == text.sequences and max(starts) + 32 <= len(data.corpus.train_T)


def test_validation_sequences_are_held_out_and_whole() -> None:
    module = MaskedTextModule(BASE)
    rows = torch.cat([batch.tokens_BL for batch in module.val_dataloader()])
    assert rows.shape == (20, 32)
    held = {tuple(row) for row in module.corpus.validation_T.reshape(-1, 32).tolist()}
    assert {tuple(row) for row in rows.tolist()} <= held


def test_ranks_share_out_the_one_batch_without_overlap() -> None:
    config = build(to_dict(BASE), {"trainer.batch_size": 8})
    corpus = MaskedTextModule(config).corpus
    whole = TrainBatches(config, corpus).batch(5)
    for world in (2, 4):
        parts = [TrainBatches(config, corpus, rank=rank, world_size=world).batch(5) for rank in range(world)]
        assert torch.equal(torch.cat([part.tokens_BL for part in parts]), whole.tokens_BL)
        for index, field in enumerate(whole.masking):
            assert torch.equal(torch.cat([part.masking[index] for part in parts]), field)
    with pytest.raises(UserError, match=r"trainer.batch_size=8 can't be split over 3 devices"):
        TrainBatches(config, corpus, rank=0, world_size=3)


def test_a_share_of_the_steps_is_shorter_whole_batches_at_a_time() -> None:
    config = build(to_dict(BASE), {"data.variable_length_share": 0.3, "data.variable_length_min": 8})
    batches = TrainBatches(config, MaskedTextModule(config).corpus)
    lengths = [batches.length(step) for step in range(3000)]
    short = [length for length in lengths if length < 32]
    assert len(short) / 3000 == pytest.approx(0.3 * 24 / 25, abs=0.03)
    assert set(short) == set(range(8, 32))
    assert sum(lengths) * config.trainer.batch_size / 3000 == pytest.approx(config.tokens_per_step, rel=0.01)
    step = lengths.index(min(lengths))
    batch = batches.batch(step)
    assert batch.tokens_BL.shape[1] == batch.masking.masked_BL.shape[1] == min(lengths)
    full = TrainBatches(BASE, batches.corpus).batch(step)
    assert torch.equal(batch.tokens_BL, full.tokens_BL[:, : min(lengths)])  # same data order as without


def test_the_index_lists_what_is_masked() -> None:
    batch = TrainBatches(BASE, MaskedTextModule(BASE).corpus).batch(0)
    assert torch.equal(batch.tokens_BL.flatten()[batch.index_M], batch.tokens_BL[batch.masking.masked_BL])
