"""Packed conversations: they see nothing of one another, and each counts as Eq. 5 has it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config import RunConfig
from core.data.corpora import load
from core.data.module import MaskedTextModule, TrainBatches, held_out
from core.data.packing import fit
from core.errors import UserError
from core.model.confined import confine
from core.model.transformer import Denoiser, initialise
from core.settings import build
from core.training.module import MaskedDiffusion
from core.training.run import train
from tests.core.training.test_run import QUICK

LENGTH = 48


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Pairs of many lengths."""
    rows = [{"prompt": "ab"[: 1 + i % 2] * (1 + i % 5), "response": "xyz" * (1 + i % 4)} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "a.jsonl"


def packed(path: Path, **settings) -> RunConfig:
    base = {
        "data.corpus": f"instructions:{path}", "data.sequence_length": LENGTH, "data.validation_sequences": 2,
        "data.packing": True, "objective.kind": "sft", "trainer.batch_size": 4,
        "objective.load_balancing_weight": 0, "objective.z_loss_weight": 0,
    }  # fmt: skip
    return build(QUICK, base, {key.replace("__", "."): value for key, value in settings.items()})


def test_bins_hold_everything_once_and_little_is_wasted() -> None:
    sizes = np.random.default_rng(0).integers(1, 40, 500).tolist()
    bins = fit(sizes, 50)
    assert sorted(index for members in bins for index in members) == list(range(500))
    assert max(sum(sizes[index] for index in members) for members in bins) <= 50
    assert len(bins) <= 1.05 * sum(sizes) / 50
    assert fit([3, 3, 4, 5, 5], 10) == [[0, 1, 2], [3, 4]]


def test_positions_start_again_and_masks_confine() -> None:
    confined = confine(torch.tensor([[1, 1, 2, 2, 2, 0]]), causal=False)
    assert confined.position_BW.tolist() == [[0, 1, 0, 1, 2, 0]]
    together = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(1, 1)).bool()
    assert torch.equal(confined.mask[0, 0], together)
    assert torch.equal(confine(torch.tensor([[1, 1, 2, 2, 2, 0]]), causal=True).mask[0, 0], together.tril())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_packed_logits_are_the_unpacked_ones(causal: bool, recompute: bool) -> None:
    config = build(QUICK, {"model.causal": causal, "objective.kind": "autoregressive" if causal else "sft"}).model
    denoiser = Denoiser(config)
    initialise(denoiser, 0)
    denoiser.recompute_layers = recompute
    tokens_BL = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    sizes = ((5, 7, 8), (12, 6, 2))
    segments_BL = torch.tensor([[i for i, size in enumerate(row, start=1) for _ in range(size)] for row in sizes])
    states_BLD = denoiser.hidden(tokens_BL, segments_BL=segments_BL).states_BLD
    logits_BLV = denoiser.logits(states_BLD)
    alone = [
        denoiser(part[None])[0][0]
        for row, lengths in zip(tokens_BL, sizes, strict=True)
        for part in row.split(list(lengths))
    ]
    torch.testing.assert_close(logits_BLV.flatten(0, 1), torch.cat(alone), atol=1e-5, rtol=0)
    assert not torch.allclose(denoiser(tokens_BL)[0], logits_BLV, atol=1e-3)  # unconfined it would be otherwise


def by_hand(module: MaskedDiffusion, batches: list) -> list[float]:
    """Eq. 5 of every conversation on its own: sum over masked of CE / p, over the length of its responses."""
    found = []
    for batch in batches:
        for row, segments_L in enumerate(batch.packed.segments_BL):
            for segment in range(1, int(segments_L.max()) + 1):
                own_L = segments_L == segment
                tokens, masked = batch.tokens_BL[row, own_L], batch.masking.masked_BL[row, own_L]
                seen = tokens.masked_fill(masked, module.config.model.mask_id)
                with torch.no_grad():
                    logits = module.denoiser(seen[None])[0][0]
                cross_entropy = F.cross_entropy(logits[masked], tokens[masked], reduction="sum")
                text = bytes(tokens[:-1].tolist()).decode()
                response = len(text.lstrip("ab")) + 1  # and its end
                found.append(float(batch.masking.weight_B[row] * cross_entropy / response))
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_the_mean_over_conversations(conversations: Path, accumulate: int) -> None:
    config = packed(conversations, trainer__accumulate=accumulate)
    module, batches = MaskedDiffusion(config), TrainBatches(config, load(config.data)).micro_batches(3)
    expected = by_hand(module, batches)
    losses = [module.training_step(batch, i)["loss"].item() for i, batch in enumerate(batches)]
    assert len(expected) > 4 * 2 and np.mean(losses) == pytest.approx(np.mean(expected), rel=1e-5)


def test_validation_is_by_conversation_too(conversations: Path, tmp_path: Path) -> None:
    config = packed(conversations)
    module, batches = MaskedDiffusion(config), list(MaskedTextModule(config).val_dataloader())
    outputs = [module.validation_step(batch, 0) for batch in batches]
    nelbo_C = torch.cat([output["nelbo_B"] for output in outputs])
    assert nelbo_C.tolist() == pytest.approx(by_hand(module, batches), rel=1e-4)
    record = train(config, tmp_path / "run")
    assert record.status == "complete", record.reason
    first, last = record.validation["val/nelbo"][0], record.validation["val/nelbo"][-1]
    assert last < first and len(record.routing["saturation"]) == len(record.validation["step"])
    with pytest.raises(UserError, match="set data.packing=false"):
        held_out(config, 1)


def test_every_conversation_is_in_the_data_whole(conversations: Path) -> None:
    alone, together = (load(packed(conversations, data__packing=flag).data) for flag in (False, True))
    assert len(together.train_T) < len(alone.train_T) / 2 and together.fingerprint != alone.fingerprint
    eos = 257

    def texts(corpus) -> list[tuple[int, ...]]:
        rows = [tuple(row) for row in corpus.train_T.reshape(-1, LENGTH).tolist()]
        pieces = [" ".join(map(str, row)).split(f" {eos}") for row in rows]
        return sorted(piece.strip() for row in pieces for piece in row if piece.strip())

    assert texts(alone) == texts(together) and len(texts(together)) == 54
    assert (together.train_T[together.train_segments_T == 0] == eos).all()
    assert not together.train_maskable_T[together.train_segments_T == 0].any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"objective.kind": "masked_diffusion"}, "packs prompts and responses, and objective.kind=masked_diffusion"),
     ({"model.router.kind": "expert_choice"}, "conversations compete for experts"),
     ({"model.router.kind": "ec_dlm"}, "kind=ec_dlm would let conversations compete for experts")],
)  # fmt: skip
def test_what_does_not_pack_is_refused(conversations: Path, settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        packed(conversations, **{key.replace(".", "__"): value for key, value in settings.items()})
