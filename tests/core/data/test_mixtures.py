"""Mixtures: parts are drawn with their weights, each in an order of its own, from any step on."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config.data import DataConfig
from core.config.loading import build
from core.config.run import RunConfig
from core.data import corpora
from core.data.batches import TrainBatches
from core.data.mixtures import BLOCK, Draws, kinds, parse, shares
from core.data.module import MaskedTextModule
from core.data.shards import Shards, write_shards
from core.data.tokenizers import Vocabulary
from core.errors import UserError
from core.training.checks import check
from core.training.run import train
from tests.core.training.test_run import QUICK

LENGTH = 8


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three corpora that can be told apart: every document of one is of one letter."""
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(name * 100)
    return tmp_path


def mixture(folder: Path, weights: str = "0.6*{a} + 0.3*{b} + .1*{c}", **settings) -> RunConfig:
    names = {name: f"text:{folder / name}" for name in "abc"}
    base = {"data.corpus": weights.format(**names), "data.sequence_length": LENGTH, "data.validation_sequences": 10}
    return build(QUICK, base, {key.replace("__", "."): value for key, value in settings.items()})


def letters(tokens_BL) -> str:
    """Which corpus each row is of."""
    return "".join(chr(Counter(row[row < 256].tolist()).most_common(1)[0][0]) for row in np.asarray(tokens_BL))


def test_the_grammar() -> None:
    assert parse("7*stdlib + 3e0*text:/a b*c") == [(0.7, "stdlib"), (0.3, "text:/a b*c")]
    assert parse("stdlib") == parse("text:/a + b") == parse("text:2*x + y") == []
    assert kinds(".5*stdlib + .5*tokens:x") == {"stdlib", "tokens"} and kinds("text:2 + 3*x") == {"text"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("0.7*stdlib + text:x", "'text:x' is no part of a mixture: write WEIGHT"),
     ("0.7*stdlib + 0.3*", "is no part of a mixture"),
     ("0.7*stdlib + -1*text:x", "'-1.text:x' is no part of a mixture"),
     ("0.7*stdlib + 0*text:x", "the weight of text:x must be positive"),
     ("2*stdlib", "mixture of one part: write data.corpus=stdlib"),
     ("1*stdlib + 2*stdlib", "names stdlib twice"),
     ("1*stdlib + 1*markov", "markov is a source of known entropy"),
     ("1*stdlib + 1*task:copy", "stdlib and task:copy don't mix: one has prompts"),
     ("1*stdlib + 1*nosuch", "data.corpus='nosuch' is unknown")],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        corpora.load(DataConfig(corpus=name, sequence_length=32))


def test_rows_are_drawn_with_the_weights_and_positions_follow_from_the_row() -> None:
    weights = [0.55, 0.449, 0.001]
    draws, seen = Draws(3, weights), np.zeros(3, dtype=int)
    for row in range(2 * BLOCK):
        part, place = draws(row)
        assert place == seen[part]  # every row takes its part's next sequence
        seen[part] += 1
        if row + 1 == BLOCK:
            assert np.abs(seen - BLOCK * np.array(weights)).max() < 2
    assert Draws(3, weights)(2 * BLOCK - 1) == draws(2 * BLOCK - 1)  # taken up anywhere
    first = [Draws(3, weights)(row)[0] for row in range(64)]
    assert first != [Draws(4, weights)(row)[0] for row in range(64)] and len(set(first)) > 1


def test_shares_are_in_proportion_and_nobody_gets_none() -> None:
    assert shares([0.6, 0.3, 0.1], 10) == [6, 3, 1] and shares([0.5, 0.3, 0.2], 7) == [4, 2, 1]
    assert shares([0.98, 0.01, 0.01], 10) == [8, 1, 1] and shares([1.0], 5) == [5]


def test_batches_hold_the_parts_in_proportion_and_each_sequence_once_an_epoch(folders: Path) -> None:
    config = mixture(folders, trainer__batch_size=16)
    batches = TrainBatches(config, MaskedTextModule(config).corpus)
    assert isinstance(batches.corpus.train_T, Shards)
    steps = list(itertools.islice(batches, 256))  # a block
    counts = Counter("".join(letters(batch.tokens_BL) for batch in steps))
    for name, weight in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert abs(counts[name] - BLOCK * weight) < 2
    starts = [batches._start(row) for row in range(BLOCK)]
    part = batches.parts[0]
    own = [start for start in starts if start < part.train][: batches._sequences(part)]
    assert len(set(own)) == len(own) and max(own) - min(own) == LENGTH * (len(own) - 1)
    later = TrainBatches(config, batches.corpus, first_step=200)
    assert all(
        torch.equal(a.tokens_BL, b.tokens_BL) for a, b in zip(itertools.islice(later, 9), steps[200:], strict=False)
    )
    ranks = [TrainBatches(config, batches.corpus, rank=rank, world_size=2).batch(5).tokens_BL for rank in (0, 1)]
    assert torch.equal(torch.cat(ranks), steps[5].tokens_BL)


def test_a_part_keeps_its_order_whatever_it_is_mixed_with(folders: Path) -> None:
    orders = []
    for weights in ("1*{a} + 1*{b}", "9*{c} + 1*{a}"):
        config = mixture(folders, weights)
        batches = TrainBatches(config, MaskedTextModule(config).corpus)
        index = next(i for i, part in enumerate(batches.parts) if part.name.endswith("a"))
        orders.append(batches._order(1, index))
    assert np.array_equal(*orders)


def test_validation_is_in_proportion_and_tells_the_parts_apart(folders: Path, tmp_path: Path) -> None:
    config = mixture(folders, trainer__keep_best=f"val/nelbo@text:{folders / 'b'}", model__num_experts=4)
    batches = list(MaskedTextModule(config).val_dataloader())
    assert Counter(letters(torch.cat([b.tokens_BL for b in batches]))) == {"a": 6, "b": 3, "c": 1}
    for batch in batches:
        assert letters(batch.tokens_BL) == "".join("abc"[i] for i in batch.domain_B)
    record = train(config, tmp_path / "run")
    assert record.status == "complete", record.reason
    by_part = [record.metrics[f"val/nelbo@text:{folders / name}"] for name in "abc"]
    mean = (6 * by_part[0] + 3 * by_part[1] + by_part[2]) / 10
    assert record.metrics["val/nelbo"] == pytest.approx(mean, rel=1e-6) and record.best["value"] <= by_part[1]
    assert record.metrics["val/bits_per_byte"] > 0
    with pytest.raises(UserError, match="keep_best=val/nelbo@nosuch is nothing"):
        check(mixture(folders, trainer__keep_best="val/nelbo@nosuch"))


def test_the_fingerprint_is_of_parts_and_weights(folders: Path) -> None:
    def found(weights: str) -> str:
        return corpora.load(mixture(folders, weights).data).fingerprint

    assert found("1*{a} + 3*{b}") == found("0.25*{a} + 0.75*{b}") != found("3*{a} + 1*{b}")
    assert found("1*{a} + 1*{b}") != found("1*{a} + 1*{c}")


def test_parts_need_room_and_one_vocabulary(folders: Path) -> None:
    with pytest.raises(UserError, match=r"data.validation_sequences=1000, .* of them of a part, but data.corpus=text"):
        corpora.load(mixture(folders, data__validation_sequences=1000).data)
    with pytest.raises(UserError, match="too few for the 3 parts"):
        corpora.load(mixture(folders, data__validation_sequences=2).data)
    tokens_T = np.arange(1000, dtype=np.uint16) % 200
    write_shards(folders / "t", tokens_T, tokens_T[:100], Vocabulary(300, 256, 257, 258), None)
    with pytest.raises(UserError, match="parts need one vocabulary, and .* has 259 ids .* 300 ids"):
        corpora.load(DataConfig(corpus=f"1*text:{folders / 'a'} + 1*tokens:{folders / 't'}", validation_sequences=4))
    write_shards(folders / "u", tokens_T, tokens_T[:100], Vocabulary(259, 256, 257, 258), None)
    mixed = corpora.load(
        DataConfig(
            corpus=f"1*text:{folders / 'a'} + 1*tokens:{folders / 'u'}", sequence_length=16, validation_sequences=4
        )
    )
    assert mixed.bytes_per_token is None and any(isinstance(part, np.memmap) for part in mixed.train_T.parts)


def test_instructions_mix_with_instructions(tmp_path: Path) -> None:
    for name in "xy":
        rows = [{"prompt": f"{name}{i}", "response": name * 3} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = " + ".join(f"1*instructions:{tmp_path / f'{part}.jsonl'}" for part in "xy")
    config = build(QUICK, {
        "data.corpus": name, "data.sequence_length": 16, "data.validation_sequences": 4, "objective.kind": "sft",
    })  # fmt: skip
    batch = MaskedTextModule(config).train_dataloader().batch(0)
    seen = batch.tokens_BL.masked_fill(batch.masking.masked_BL, 0)
    assert set(seen[:, 0].tolist()) == {ord("x"), ord("y")}
