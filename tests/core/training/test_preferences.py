"""VRPO: preferences by bounds, against a loop over pairs, sides and draws; shared masks; what training on them changes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.config.loading import build
from core.config.run import RunConfig
from core.data.corpora import load
from core.data.module import MaskedTextModule
from core.diffusion.batch import Batch
from core.diffusion.losses import preference_margins
from core.diffusion.masking import mask_tokens
from core.diffusion.prediction import predict
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.training.checks import check
from core.training.module import MaskedDiffusion
from core.training.run import train
from tests.core.training.test_run import QUICK

PAIRS = {
    "data.sequence_length": 24, "data.validation_sequences": 8, "data.corpus": "preferences:task:copy",
    "objective.kind": "vrpo", "objective.draws": 4, "trainer.batch_size": 4, "trainer.initial_weights": "none",
}  # fmt: skip


def prefers(**changes) -> RunConfig:
    return build(QUICK, PAIRS, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def moved() -> MaskedDiffusion:
    """A model that has moved away from its reference."""
    module = MaskedDiffusion(prefers(objective__load_balancing_weight=0.0, objective__z_loss_weight=0.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.denoiser.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return module


def test_a_pair_is_two_responses_to_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i:02}", "chosen": "yes", "rejected": "no"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = prefers(data__corpus=f"preferences:{path}", data__sequence_length=8, data__validation_sequences=2)
    corpus = load(config.data)
    assert corpus.rows == 2 and len(corpus.train_T) == 27 * 16 and len(corpus.validation_T) == 3 * 16
    batch = MaskedTextModule(config).train_dataloader().batch(0)
    assert batch.tokens_BL.shape == (4 * 2 * 4, 8)
    for pair in batch.tokens_BL.unflatten(0, (4, 2, 4)):
        chosen, rejected = (bytes(side[0][side[0] < 256].tolist()).decode() for side in pair)
        assert chosen[:3] == rejected[:3] and chosen[0] == "p" and (chosen[3:], rejected[3:]) == ("yes", "no")
        assert all((side == side[0]).all() for side in pair)
    assert not batch.masking.masked_BL[:, :3].any()
    strata_B = (batch.masking.timestep_B * 4).ceil().unflatten(0, (8, 4)).sort(1).values
    assert (strata_B == torch.arange(1, 5)).all()  # of each response
    path.write_text("\n".join(map(json.dumps, [{"prompt": "p", "chosen": "yes"}] * 30)))
    with pytest.raises(UserError, match='has no text under "rejected"'):
        load(replace(config.data, sequence_length=9))


def test_the_loss_and_its_gradient_are_a_loop_over_pairs_sides_and_draws(moved: MaskedDiffusion) -> None:
    batch = MaskedTextModule(moved.config).train_dataloader().batch(0)
    loss = moved.training_step(batch, 0)["loss"]
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in moved.denoiser.named_parameters()}
    moved.zero_grad()
    assert moved.reference is not None and all(p.grad is None for p in moved.reference.parameters())

    def bound(network: torch.nn.Module, row: int) -> torch.Tensor:
        """A response's bound under one mask, in nats."""
        noisy_1L = batch.tokens_BL[row : row + 1].masked_fill(batch.masking.masked_BL[row], 256)
        logits_LV = network.logits(network.hidden(noisy_1L).states_BLD[0])
        places = batch.masking.masked_BL[row].nonzero()[:, 0].tolist()
        said = [logits_LV[i].log_softmax(-1)[batch.tokens_BL[row, i]] for i in places]
        return batch.masking.weight_B[row] * sum(said, torch.zeros(()))

    total = torch.zeros(())
    for pair in range(4):
        rewards = []
        for side in range(2):
            rows = [pair * 8 + side * 4 + draw for draw in range(4)]
            with torch.no_grad():
                reference = sum((bound(moved.reference, row) for row in rows), torch.zeros(())) / 4
            rewards.append(sum((bound(moved.denoiser, row) for row in rows), torch.zeros(())) / 4 - reference)
        total = total - torch.nn.functional.logsigmoid(0.2 * (rewards[0] - rewards[1])) / 4
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    for name, parameter in moved.denoiser.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=1e-4, msg=name)


def test_shared_masks_vary_the_preference_score_less_than_independent_ones(moved: MaskedDiffusion) -> None:
    batches = MaskedTextModule(moved.config).train_dataloader()
    first = batches.batch(0)
    assert moved.reference is not None
    tokens_BL, maskable_BL = first.tokens_BL, first.tokens_BL != 257
    shared, apart = [], []

    def nats(network: Denoiser, generator: torch.Generator) -> torch.Tensor:
        masking = mask_tokens(len(tokens_BL), tokens_BL.shape[1], moved.config.objective, generator, maskable_BL)
        given = Batch.of(tokens_BL, masking)
        nelbo_B = predict(network, moved.objective.input(given), given).nelbo_B * masking.length_B
        return nelbo_B.unflatten(0, (4, 2, 4)).mean(2)

    with torch.no_grad():
        for draw in range(16):
            own, same, other = (torch.Generator().manual_seed(seed) for seed in (draw, draw, 1000 + draw))
            own_P2 = nats(moved.denoiser, own)
            shared.append(preference_margins(own_P2, nats(moved.reference, same), 1.0))
            apart.append(preference_margins(own_P2, nats(moved.reference, other), 1.0))
    variances = [torch.stack(each).var(0).mean().item() for each in (shared, apart)]
    assert variances[0] < 0.5 * variances[1]


def test_training_raises_the_accuracy_on_held_out_pairs(tmp_path: Path) -> None:
    """Rising responses are preferred to falling ones, whatever the prompt."""
    rows = [{"prompt": f"{i:03}", "chosen": "abcd", "rejected": "dcba"} for i in range(320)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    start = Denoiser(prefers().model)
    initialise(start, 0)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    config = prefers(
        data__corpus=f"preferences:{tmp_path / 'pairs.jsonl'}", data__sequence_length=8, data__validation_sequences=32,
        trainer__initial_weights=str(tmp_path / "start.safetensors"), trainer__steps=25, trainer__batch_size=8,
        trainer__validate_every=0, optimizer__learning_rate=4e-3,
    )  # fmt: skip
    module = MaskedDiffusion(config)
    untouched = next(iter(MaskedTextModule(config).val_dataloader()))
    with torch.no_grad():  # as validation is; layers that keep no gradient may round otherwise
        assert not module.validation_step(untouched, 0)["margin_P"].any()  # a model is its own reference at first
    record = train(config, tmp_path / "run")
    assert record.status == "complete", record.reason
    assert record.metrics["val/preference_accuracy"] > 0.9 and record.metrics["val/preference_margin"] > 0.1
    assert math.isfinite(record.metrics["val/nelbo"])
    assert record.curve["tokens"][-1] == config.tokens_per_step * 25 == 25 * 8 * 2 * 4 * 8


def test_preferences_need_pairs_a_start_and_one_device() -> None:
    with pytest.raises(UserError, match=r"objective.kind=vrpo compares with .* set trainer.initial_weights"):
        prefers(trainer__initial_weights=None)
    with pytest.raises(UserError, match="needs pairs of responses"):
        check(prefers(data__corpus="task:copy"))
    with pytest.raises(UserError, match="is rejected responses"):
        check(prefers(objective__kind="sft", trainer__initial_weights=None))
    with pytest.raises(UserError, match="use trainer.strategy=single"):
        prefers(trainer__strategy="deepspeed")


def test_the_reference_stays_where_training_began(tmp_path: Path) -> None:
    module = MaskedDiffusion(prefers())
    initialise(module.denoiser, 7)
    module.keep_reference()
    before = {name: value.clone() for name, value in module.reference.state_dict().items()}
    batch = MaskedTextModule(module.config).train_dataloader().batch(0)
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(batch, 0)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.reference.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in module.denoiser.state_dict().items())
