"""A run on paper, against the run itself where that can be had."""

import numpy as np
import pytest
import torch

from core.config.loading import build
from core.config.presets import preset
from core.config.run import to_dict
from core.data.corpora import load as load_corpus
from core.data.shards import write_shards
from core.data.tokenizers import Vocabulary
from core.errors import UserError
from core.model.transformer import Denoiser
from core.training.dry_run import check_fed, dry_run, passes, schedule_of, shapes_of

TINY = preset("tiny")
CAUSAL = {"objective__kind": "autoregressive", "model__causal": True}


def with_settings(**settings):
    return build(to_dict(TINY), {key.replace("__", "."): value for key, value in settings.items()})


@pytest.mark.parametrize("kind", ["topk", "film", "expert_choice", "ec_dlm", "soft", "adaptive_k"])
def test_shapes_are_those_of_the_network_itself(kind) -> None:
    config = with_settings(model__router__kind=kind)
    denoiser = Denoiser(config.model).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    told_B = torch.full((3,), 0.5)
    with torch.no_grad():
        hidden = denoiser.hidden(torch.zeros(3, 64, dtype=torch.long), told_B, told_B)
    found = shapes_of(config, 3)
    assert found["hidden states"] == tuple(hidden.states_BLD.shape)
    assert found["logits of a sequence"] == (64, 259)
    assert found["router probabilities"] == tuple(hidden.routings[0].routing.probs_NE.shape)
    assert found["chosen experts"] == tuple(hidden.routings[0].routing.experts_NK.shape)


def test_the_full_model_takes_no_memory(tmp_path) -> None:
    ids_T = np.zeros(10_000_000, dtype=np.uint32)
    write_shards(tmp_path, ids_T, ids_T[:1_000_000], Vocabulary(156_800), None)
    settings = {"trainer.batch_size": 8, "data.corpus": f"tokens:{tmp_path}"}
    found = dry_run(build(to_dict(preset("llada_moe_7b_a1b")), settings))
    assert (found.size.total, found.size.active) == (7_356_880_896, 1_397_823_488)
    assert found.shapes["hidden states"] == (8, 4096, 2048) and found.shapes["chosen experts"] == (8 * 4096, 8)
    assert found.tokens == 8 * 4096 * 100_000 and found.epochs == found.tokens / found.corpus_tokens


def test_the_schedule_at_its_corners() -> None:
    assert schedule_of(TINY)[:2] == [(0, pytest.approx(4e-3 / 20)), (20, pytest.approx(4e-3))]
    half = dict(schedule_of(with_settings(optimizer__warmup_steps=0)))[200]
    assert half == pytest.approx(4e-3 * (0.1 + 0.9 / 2))


def test_what_training_would_refuse_is_refused_but_not_what_this_machine_lacks() -> None:
    with pytest.raises(UserError, match="data.corpus='stdlbi' is unknown"):
        dry_run(with_settings(data__corpus="stdlbi"))
    with pytest.raises(UserError, match="trainer.strategy=single trains on one device, not 2"):
        dry_run(TINY, 2)
    spread = {"trainer__strategy": "deepspeed", "deepspeed__offload": "optimizer"}
    elsewhere = with_settings(trainer__accelerator="cuda", trainer__batch_size=32, **spread)
    assert dry_run(elsewhere, 8).micro_batch == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"model__vocab_size": 1024}, None),  # spare rows
        ({"model__vocab_size": 32_000, "model__mask_id": 31_000}, "259 token ids, and the model rows for 32,000"),
        ({"trainer__steps": 4_000_000}, None),
        ({"trainer__steps": 5_000_000}, "each 5[0-9][0-9] times, where more than 500 teach nothing more"),
        ({**CAUSAL, "trainer__steps": 500_000}, "more than 40 teach nothing more"),
    ],
)
def test_data_that_cant_feed_the_model_is_refused(settings, said) -> None:
    config = with_settings(**settings)
    if said is None:
        check_fed(config, load_corpus(config.data))
        return
    with pytest.raises(UserError, match=said):
        dry_run(config)


def test_masks_of_one_pair_are_one_pass_over_it() -> None:
    corpus = load_corpus(TINY.data)
    pairs = with_settings(objective__kind="vrpo", objective__draws=4, trainer__initial_weights="stage:x")
    assert passes(pairs, corpus) == 2 * passes(TINY, corpus)  # two responses, whatever is drawn of them


def test_widths_that_bf16_cant_have_give_no_shapes() -> None:
    assert shapes_of(with_settings(model__expert_width=12), 2) == {}
