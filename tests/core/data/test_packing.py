"""Packed conversations: they see nothing of one another, and each counts as Eq. 5 has it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config.loading import build
from core.config.model import ROUTERS
from core.config.run import RunConfig
from core.data.batches import TrainBatches
from core.data.corpora import load
from core.data.kinds.responses import fit
from core.data.module import MaskedTextModule, held_out
from core.errors import UserError
from core.model.attention import confine
from core.model.balance import expert_counts, max_violation
from core.training.callbacks import summarise
from core.training.module import MaskedDiffusion
from core.training.run import train
from tests.core.networks import network_of
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
    denoiser = network_of(config)
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


def without_filling(module: MaskedDiffusion, batch) -> tuple[torch.Tensor, list]:
    """The slow reference: every row alone, its filling cut off. Returns the loss, and each layer's routing of all tokens."""
    routings, nats = [], 0.0
    for row, segments_L in enumerate(batch.packed.segments_BL):
        own = slice(0, int((segments_L > 0).sum()))
        tokens_BL, masked_BL = batch.tokens_BL[row : row + 1, own], batch.masking.masked_BL[row : row + 1, own]
        hidden = module.denoiser.hidden(
            tokens_BL.masked_fill(masked_BL, module.config.model.mask_id), batch.router_timestep_B[row : row + 1],
            batch.masking.ratio_B[row : row + 1], segments_BL=batch.packed.segments_BL[row : row + 1, own],
        )  # fmt: skip
        routings.append([layer.routing for layer in hidden.routings])
        logits = module.denoiser.logits(hidden.states_BLD[masked_BL])
        cross_entropy = F.cross_entropy(logits, tokens_BL[masked_BL], reduction="none")
        conversation = segments_L[own][masked_BL[0]]
        before = int((batch.packed.row_C < row).sum())
        lengths = batch.packed.length_C[before + conversation - 1]
        nats = nats + (batch.masking.weight_B[row] * cross_entropy / lengths).sum()
    layers = [
        [torch.cat([getattr(row[layer], name) for row in routings]) for name in ("logits_NE", "probs_NE", "experts_NK")]
        for layer in range(len(routings[0]))
    ]
    experts = module.config.model.experts
    auxiliary = 0.0
    for logits_NE, probs_NE, experts_NK in layers:
        share_E = F.one_hot(experts_NK[experts_NK >= 0], experts).double().mean(0)
        balance = experts * (share_E * probs_NE.mean(0)).sum()
        auxiliary = auxiliary + (0.3 * balance + 0.2 * logits_NE.logsumexp(-1).square().mean()) / len(layers)
    return nats / len(batch.packed.row_C) + auxiliary, layers


def gradients(module: MaskedDiffusion, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [kind.name for kind in ROUTERS.entries() if not kind.experts_choose])
def test_filling_is_nobodys_token(conversations: Path, kind: str) -> None:
    """The losses, gradients and statistics of a batch are those of the same batch without its filling."""
    weights = {"objective__load_balancing_weight": 0.3, "objective__z_loss_weight": 0.2}
    module = MaskedDiffusion(packed(conversations, model__router__kind=kind, **weights))
    batch = TrainBatches(module.config, load(module.config.data)).batch(3)
    assert int((~batch.packed.real_BL).sum()) > 0
    expected, layers = without_filling(module, batch)
    wanted = gradients(module, expected)
    found = module.training_step(batch, 0)["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, grad in gradients(module, found).items():
        torch.testing.assert_close(grad, wanted[name], atol=2e-6, rtol=1e-4, msg=name)
    experts = module.config.model.experts
    counts_SE = torch.stack([expert_counts(experts_NK, experts, ragged=True) for *_, experts_NK in layers])
    assert torch.equal(torch.stack([layer.counts_E for layer in module._routings]), counts_SE)
    with torch.no_grad():
        seen = module.validation_step(batch, 0)
    assert torch.equal(seen["counts_LE"], counts_SE) and torch.equal(seen["load_STME"].sum((1, 2)), counts_SE)
    assert torch.equal(seen["violation_S"], max_violation(counts_SE))
    torch.testing.assert_close(seen["top1_SN"], torch.stack([probs_NE.amax(-1) for _, probs_NE, _ in layers]))
    if kind == "bias_balanced":
        module.on_train_batch_end(None, batch, 0)
        rate = module.config.model.router.bias_update_rate
        for moe, counts_E in zip(module.denoiser.mixtures(), counts_SE.float(), strict=True):
            torch.testing.assert_close(moe.router.bias_E, rate * (counts_E.mean() - counts_E).sign())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_micro_batches_and_devices_divide_by_the_tokens_of_the_step(conversations: Path, accumulate: int) -> None:
    """The rows of a step, split over devices and micro-batches, have the z-loss of them all as the mean of their own."""
    weights = {"objective__z_loss_weight": 1.0, "trainer__batch_size": 8}
    whole = packed(conversations, **weights)
    module = MaskedDiffusion(whole)
    z_loss = module.training_step(TrainBatches(whole, load(whole.data)).batch(2), 0)["z_loss"].item()
    split, parts = packed(conversations, trainer__accumulate=accumulate, **weights), []
    for rank in (0, 1):
        parts += TrainBatches(split, load(split.data), rank=rank, world_size=2).micro_batches(2)
    assert len({int((part.packed.segments_BL > 0).sum()) for part in parts}) > 1
    found = [module.training_step(part, i)["z_loss"].item() for i, part in enumerate(parts)]
    assert np.mean(found) == pytest.approx(z_loss, rel=1e-6)


def test_validation_weighs_auxiliary_losses_by_tokens(conversations: Path) -> None:
    config = packed(conversations, data__validation_sequences=2, trainer__batch_size=1)
    module = MaskedDiffusion(config)
    batches = list(MaskedTextModule(config).val_dataloader())
    together = list(MaskedTextModule(packed(conversations, trainer__batch_size=2)).val_dataloader())
    with torch.no_grad():
        apart, whole = ([module.validation_step(batch, 0) for batch in part] for part in (batches, together))
    assert len(apart) == 2 and len(whole) == 1
    tokens, conversed = ([output[name].shape[-1] for output in apart] for name in ("top1_SN", "nelbo_B"))
    assert tokens[0] * conversed[1] != tokens[1] * conversed[0]  # neither would do in the other's place
    assert summarise(apart)["val/z_loss"] == pytest.approx(float(whole[0]["z_loss"]), rel=1e-6)
